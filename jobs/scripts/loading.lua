-- A model is being loaded: told to the jobs that wait for it, those that are next in their lanes
-- first, and kept for those that come meanwhile (submit.lua). Their records stay as they are.
-- Nobody waits for a load where another worker has the model resident and takes jobs.
-- ARGV: model, most jobs, bytes, seconds or '', seconds for which that is kept
-- Returns how many were told
local model, most, bytes, takes = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
for _, class in ipairs(CLASSES) do
  for _, worker in ipairs(redis.call('SMEMBERS', 'rq:workers:' .. model .. ':' .. class)) do
    local text = redis.call('HGET', worker, 'denoised')
    local info = text and cjson.decode(text) or {}
    local serves = info.state == 'idle' or info.state == 'busy'
    for _, resident in ipairs(serves and info.models or {}) do
      if resident == model then return 0 end
    end
  end
end

redis.call('HSET', load_key(model), 'bytes', bytes,
  'ready_us', takes == '' and '' or string.format('%.0f', now_us + takes * 1e6))
redis.call('EXPIRE', load_key(model), ARGV[5])

local told = 0
for _, class in ipairs(CLASSES) do
  local queue = model .. ':' .. class
  for _, owner in ipairs(owners_of(queue)) do
    if told >= most then return told end
    for _, id in ipairs(redis.call('LRANGE', lane_key(queue, owner), 0, most - told - 1)) do
      local v = redis.call('HMGET', job_key(id), 'status', 'final_event')
      if v[1] == 'queued' and not v[2] then
        emit_loading(id, bytes, takes)
        told = told + 1
      end
    end
  end
end
return told
