-- One report: fence, lease extension, position, event, cancel flag. A heartbeat has no stage.
-- ARGV: id, execution id, lease seconds, stage or '', step, total steps, eta seconds or '',
--       progress fragment or '' (no event), preview fragment or '' (no event)
-- Returns 0 lease lost, 1 go on, 2 cancel
local id, exec, stage = ARGV[1], ARGV[2], ARGV[4]
local key = job_key(id)
local held = redis.call('HMGET', key, 'exec', 'cancel', 'status', 'attempt', 'deadline_us')
if held[1] ~= exec then return 0 end
redis.call('ZADD', 'denoised:wip', 'XX', now + tonumber(ARGV[3]), id .. ':' .. exec)
if stage ~= '' then
  redis.call('HSET', key, 'stage', stage, 'step', ARGV[5], 'total_steps', ARGV[6],
    'eta', ARGV[7])
  if ARGV[8] ~= '' then emit(id, 'progress', 'started', stage, held[4], ARGV[8]) end
  if ARGV[9] ~= '' then emit(id, 'preview', 'started', stage, held[4], ARGV[9]) end
end
-- RQ's own cancel writes the status and no flag.
if held[2] or held[3] ~= 'started' then return 2 end
if held[5] and now * 1e6 > tonumber(held[5]) then return 2 end
return 1
