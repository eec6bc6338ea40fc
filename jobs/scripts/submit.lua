-- Accepts a job, all or nothing: idempotency, admission, hash, queue, first event, index, doorbell.
-- ARGV: id, model, priority, data, meta, description, deterministic, total_steps, max_attempts,
--       queue limit, idempotency key or '', fingerprint, idempotency ttl, owner or ''
-- Returns {'created', submitted_us, position} | {'existing', id} | {'conflict', id}
--         | {'full', finishes counted, seconds they took}
local id, model, priority, owner = ARGV[1], ARGV[2], ARGV[3], ARGV[14]
local queue = model .. ':' .. priority
local key = job_key(id)

-- A client that lost its connection sends the script again; the id tells.
local submitted = redis.call('HGET', key, 'submitted_us')
if submitted then
  return { 'created', submitted, queue_position(id, queue, redis.call('HGET', key, 'status')) }
end

local idem = ARGV[11] ~= '' and 'denoised:idem:' .. ARGV[11] or nil
if idem then
  local earlier = redis.call('HMGET', idem, 'id', 'fingerprint')
  if earlier[1] and redis.call('EXISTS', job_key(earlier[1])) == 1 then
    return { earlier[2] == ARGV[12] and 'existing' or 'conflict', earlier[1] }
  end
end

local waiting = 0
for _, name in ipairs(redis.call('SMEMBERS', 'denoised:queues')) do
  waiting = waiting + redis.call('LLEN', queue_key(name))
end
if waiting >= tonumber(ARGV[10]) then
  local finishes = redis.call('LRANGE', 'denoised:finishes', 0, -1)
  local took = #finishes > 0 and now - tonumber(finishes[#finishes]) or 0
  return { 'full', #finishes, string.format('%.6f', took) }
end

redis.call('HSET', key, 'status', 'queued', 'origin', queue, 'created_at', iso,
  'enqueued_at', iso, 'data', ARGV[4], 'meta', ARGV[5], 'description', ARGV[6],
  'model', model, 'priority', priority, 'deterministic', ARGV[7], 'total_steps', ARGV[8],
  'max_attempts', ARGV[9], 'submitted_us', now_us, 'attempt', 0, 'step', 0, 'owner', owner)
redis.call('SADD', 'rq:queues', queue_key(queue))
redis.call('SADD', 'denoised:queues', queue)
redis.call('RPUSH', queue_key(queue), id)
list_entry('denoised:jobs', owner, id, job_key)
if idem then
  redis.call('HSET', idem, 'id', id, 'fingerprint', ARGV[12])
  redis.call('EXPIRE', idem, ARGV[13])
end
emit(id, 'queued', 'queued', nil, 0, '')
wake(model)
return { 'created', now_us, queue_position(id, queue, 'queued') }
