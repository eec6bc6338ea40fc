-- A claimed job's checkpoint is of no use: it is forgotten, and watchers are told that the job starts
-- at step 0 after all. Only the holder of the lease may; sent twice, it is told once.
-- ARGV: id, execution id, blob key, cause
-- Returns 0 fenced off | 1 done, now or by an earlier send
local id, exec = ARGV[1], ARGV[2]
local key = job_key(id)
local held = redis.call('HMGET', key, 'exec', 'checkpoint', 'attempt')
if held[1] ~= exec then return 0 end
if held[2] ~= ARGV[3] then return 1 end
drop_checkpoint(id)
redis.call('HSET', key, 'step', 0)
emit(id, 'restarted', 'started', nil, held[3],
  ',"cause":' .. cjson.encode(ARGV[4]) .. ',"step":0')
return 1
