-- Points a job at a newer checkpoint, whose blob is in place, and books what the attempt has cost up
-- to it. Only the holder of the lease may; an older checkpoint never replaces a newer one.
-- ARGV: id, execution id, blob key, step, sha256, gpu seconds, steps, resumed steps
-- Returns 0 fenced off | 1 the job points at it | 2 the job points at a newer one
local id, exec, blob, step = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local key = job_key(id)
local held = redis.call('HMGET', key, 'exec', 'checkpoint', 'checkpoint_step')
if held[1] ~= exec then return 0 end
if held[2] == blob then return 1 end
if held[2] and tonumber(held[3]) >= step then return 2 end
redis.call('HSET', key, 'checkpoint', blob, 'checkpoint_step', step, 'checkpoint_sha256', ARGV[5])
add_usage(id, ARGV[6], ARGV[7], ARGV[8])
return 1
