-- Gives a worker up to `limit` jobs: status, attempt, lease and fencing token in one step.
-- The next job is the queue head with the earliest due time, which is its submission time plus the
-- allowance of its class: urgent classes pass first, and none waits for ever.
-- ARGV: worker, claim id, lease seconds, memo ttl, limit, then per queue: name, allowance in us
-- Returns {now_us, {{id, execution id, queue, data, model, ...}, ...}}
local worker, claim, lease, limit = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[5])
local memo = 'denoised:claim:' .. claim
local granted = {}

local function grant(id, exec)
  local v = redis.call('HMGET', job_key(id), 'origin', 'data', 'model', 'deterministic',
    'attempt', 'created_at', 'enqueued_at', 'checkpoint', 'checkpoint_step', 'checkpoint_sha256')
  granted[#granted + 1] = { id, exec, unpack(v) }
end

-- The same claim sent again after a broken connection is answered with the same jobs.
local before = redis.call('LRANGE', memo, 0, -1)
if #before > 0 then
  for _, member in ipairs(before) do
    local id, exec = member:match('^([^:]+):(.+)$')
    if redis.call('HGET', job_key(id), 'exec') == exec then grant(id, exec) end
  end
  return { now_us, granted }
end

local queues = {}
local function look(queue)
  local id = redis.call('LINDEX', queue_key(queue.name), 0)
  queue.due = id
    and (tonumber(redis.call('HGET', job_key(id), 'submitted_us')) or 0) + queue.allowance
end
for i = 6, #ARGV, 2 do
  local queue = { name = ARGV[i], allowance = tonumber(ARGV[i + 1]) }
  look(queue)
  queues[#queues + 1] = queue
end

while #granted < limit do
  local first
  for _, queue in ipairs(queues) do
    if queue.due and (not first or queue.due < first.due) then first = queue end
  end
  if not first then break end
  local id = redis.call('LPOP', queue_key(first.name))
  local job = load_job(id)
  -- Anything else on the list is a leftover: cancelled, expired, or taken already.
  if job and job.status == 'queued' then
    local key, exec = job_key(id), claim .. '-' .. (#granted + 1)
    if job.final_event then revive(id, job) end
    local attempt = redis.call('HINCRBY', key, 'attempt', 1)
    redis.call('HSET', key, 'status', 'started', 'worker_name', worker, 'exec', exec,
      'started_at', iso, 'started_us', now_us, 'origin', first.name,
      'step', redis.call('HGET', key, 'checkpoint_step') or 0)
    redis.call('HDEL', key, unpack(BOOKED))
    redis.call('ZADD', 'denoised:wip', now + lease, id .. ':' .. exec)
    -- For RQ's tools. Its score must never lapse: their clean-up would fail the job unfenced.
    redis.call('ZADD', 'rq:wip:' .. first.name, '+inf', id .. ':' .. exec)
    redis.call('RPUSH', memo, id .. ':' .. exec)
    emit(id, 'started', 'started', nil, attempt, ',"worker":' .. cjson.encode(worker))
    grant(id, exec)
  end
  look(first)
end

if #granted > 0 then
  redis.call('EXPIRE', memo, ARGV[4])
else
  -- A model with nothing waiting needs no doorbell tokens: they would only cause empty rounds.
  for _, queue in ipairs(queues) do
    local model = queue.name:match('^(.*):[^:]*$')
    local waiting = 0
    for _, class in ipairs({ 'interactive', 'standard', 'batch' }) do
      waiting = waiting + redis.call('LLEN', queue_key(model .. ':' .. class))
    end
    if waiting == 0 then redis.call('DEL', 'denoised:wake:' .. model) end
  end
end
return { now_us, granted }
