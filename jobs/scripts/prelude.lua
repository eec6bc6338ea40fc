-- Put in front of every script: the clock, the event log, and the two ways a job leaves a worker
-- (settled for good, or back on its queue). Time is Redis TIME, so host clocks do not matter.

local clock = redis.call('TIME')
local seconds, micros = tonumber(clock[1]), tonumber(clock[2])
local now = seconds + micros / 1e6
local now_us = string.format('%.0f', seconds * 1e6 + micros)

-- Year, month and day from days since 1970 (Hinnant, "chrono-compatible low-level date
-- algorithms"): the sandbox has no os.date.
local function iso_now()
  local z = math.floor(seconds / 86400) + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor(
    (doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  local day = doy - math.floor((153 * mp + 2) / 5) + 1
  local rest = seconds % 86400
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%06dZ', year, month, day,
    math.floor(rest / 3600), math.floor(rest / 60) % 60, rest % 60, micros)
end
local iso = iso_now()

local function job_key(id) return 'rq:job:' .. id end
local function queue_key(name) return 'rq:queue:' .. name end
local function event_key(id) return 'denoised:ev:' .. id end

local EVENT_LOG_LENGTH = 256
local RESULTS_KEPT = 10
local WAKE_TOKENS = 256
local PUBLIC = { queued = 'queued', started = 'running', finished = 'succeeded',
                 failed = 'failed', canceled = 'cancelled' }
local CANCELLED_WHILE_QUEUED =
  '{"code":"cancelled","message":"cancelled before it started","param":null,"retryable":false}'
local CANCELLED_WHILE_RUNNING =
  '{"code":"cancelled","message":"cancelled on request","param":null,"retryable":false}'
local WORKER_LOST = '{"code":"worker_lost","message":"every allowed attempt lost its worker",'
  .. '"param":null,"retryable":true}'

-- The fields the scripts decide by; nil when there is no such job.
local FIELDS = { 'status', 'exec', 'cancel', 'attempt', 'max_attempts', 'origin', 'model',
                 'last_exec', 'final_event', 'started_us', 'worker_name', 'owner' }
local function load_job(id)
  local values = redis.call('HMGET', job_key(id), unpack(FIELDS))
  if not values[1] then return nil end
  local job = {}
  for i, name in ipairs(FIELDS) do job[name] = values[i] or nil end
  job.attempt = tonumber(job.attempt or 0)
  job.max_attempts = tonumber(job.max_attempts or 1)
  job.origin = job.origin or ''
  job.owner = job.owner or ''
  return job
end

-- Enters an id into a listing, of which every API key has its own. Entries of a key whose hash has
-- expired are taken out by those that follow.
local OLDEST_LOOKED_AT = 8
local function listing(name, owner) return owner == '' and name or name .. ':' .. owner end
local function list_entry(name, owner, id, hash_key)
  local index = listing(name, owner)
  if owner ~= '' then
    for _, old in ipairs(redis.call('ZRANGE', index, 0, OLDEST_LOOKED_AT - 1)) do
      if redis.call('EXISTS', hash_key(old)) == 0 then redis.call('ZREM', index, old) end
    end
  end
  redis.call('ZADD', index, now_us, id)
end

-- Appends to the job's log and tells live watchers `<stream id> <json>`. `extra` is a fragment
-- of JSON that starts with a comma, or empty.
local function emit(id, kind, status, stage, attempt, extra)
  local data = '{"type":"job.' .. kind .. '","job_id":"' .. id .. '","status":"' .. PUBLIC[status]
    .. '","stage":' .. (stage and '"' .. stage .. '"' or 'null')
    .. ',"attempt":' .. string.format('%d', attempt)
    .. ',"created_at":"' .. iso .. '"' .. extra .. '}'
  local entry = redis.call('XADD', event_key(id), 'MAXLEN', '~', EVENT_LOG_LENGTH, '*',
    'type', 'job.' .. kind, 'data', data)
  redis.call('PUBLISH', event_key(id), entry .. ' ' .. data)
  return entry
end

local function wake(model)
  local key = 'denoised:wake:' .. model
  redis.call('LPUSH', key, '1')
  redis.call('LTRIM', key, 0, WAKE_TOKENS - 1)
end

local function drop_lease(id, job)
  if not job.exec then return end
  local member = id .. ':' .. job.exec
  redis.call('ZREM', 'denoised:wip', member)
  redis.call('ZREM', 'rq:wip:' .. job.origin, member)
end

-- RQ's tools can put a job that had ended back on its queue: it starts a new life with a fresh
-- event log and all its attempts.
local function revive(id, job)
  redis.call('HDEL', job_key(id), 'final_event', 'last_exec', 'error', 'outputs', 'cancel')
  redis.call('HSET', job_key(id), 'attempt', 0)
  redis.call('PERSIST', job_key(id))
  redis.call('PERSIST', 'rq:results:' .. id)
  redis.call('DEL', event_key(id))
  redis.call('ZREM', 'denoised:expiry', id)
  job.attempt, job.cancel, job.final_event = 0, nil, nil
  emit(id, 'requeued', 'queued', nil, 0, ',"cause":"operator","step":0')
end

-- The one place where a terminal state is written. `ending`: status (RQ's word), error and outputs
-- (JSON or ''), extra (event fragment), result (field list of an RQ result, or nil).
local function settle(id, job, exec, ending, ttl, event_ttl)
  local key = job_key(id)
  drop_lease(id, job)
  redis.call('HSET', key, 'status', ending.status, 'ended_at', iso, 'last_exec', exec,
    'error', ending.error, 'outputs', ending.outputs)
  redis.call('HDEL', key, 'exec', 'stage', 'eta')
  local kind = PUBLIC[ending.status]
  local entry = emit(id, kind, ending.status, nil, job.attempt, ending.extra)
  redis.call('HSET', key, 'final_event', entry)
  redis.call('EXPIRE', key, ttl)
  redis.call('EXPIRE', event_key(id), event_ttl)
  redis.call('ZADD', 'rq:' .. ending.status .. ':' .. job.origin, math.floor(now + ttl), id)
  redis.call('ZADD', 'denoised:expiry', now + ttl, id)
  if ending.result then
    redis.call('XADD', 'rq:results:' .. id, 'MAXLEN', RESULTS_KEPT, '*',
      'worker_name', job.worker_name or '', 'execution_id', exec,
      'execution_started_at', string.format('%.6f', (tonumber(job.started_us) or now_us) / 1e6),
      'execution_ended_at', string.format('%.6f', now), unpack(ending.result))
    redis.call('EXPIRE', 'rq:results:' .. id, ttl)
  end
end

local function settle_cancelled(id, job, exec, why, ttl, event_ttl)
  settle(id, job, exec, { status = 'canceled', error = why, outputs = '',
    extra = ',"error":' .. why }, ttl, event_ttl)
end

-- An attempt ends without a result. Returns what became of the job: requeued, failed, canceled.
local function put_back(id, job, exec, cause, refund, lost_trace, ttl, event_ttl)
  if job.cancel or job.status == 'canceled' then
    settle_cancelled(id, job, exec, CANCELLED_WHILE_RUNNING, ttl, event_ttl)
    return 'canceled'
  end
  if not refund and job.attempt >= job.max_attempts then
    settle(id, job, exec, { status = 'failed', error = WORKER_LOST, outputs = '',
      extra = ',"error":' .. WORKER_LOST,
      result = { 'type', '2', 'exc_string', lost_trace } }, ttl, event_ttl)
    return 'failed'
  end
  local key = job_key(id)
  drop_lease(id, job)
  redis.call('HSET', key, 'status', 'queued', 'enqueued_at', iso, 'last_exec', exec, 'step', 0)
  redis.call('HDEL', key, 'exec', 'stage', 'eta', 'worker_name', 'started_at', 'started_us')
  if refund then redis.call('HINCRBY', key, 'attempt', -1) end
  redis.call('LPUSH', queue_key(job.origin), id)
  emit(id, 'requeued', 'queued', nil, job.attempt - (refund and 1 or 0),
    ',"cause":' .. cjson.encode(cause) .. ',"step":0')
  wake(job.model or '')
  return 'requeued'
end

local function add_usage(id, gpu_seconds, steps, resumed_steps)
  local key = job_key(id)
  if tonumber(gpu_seconds) > 0 then redis.call('HINCRBYFLOAT', key, 'gpu_seconds', gpu_seconds) end
  if tonumber(steps) > 0 then redis.call('HINCRBY', key, 'steps', steps) end
  if tonumber(resumed_steps) > 0 then
    redis.call('HINCRBY', key, 'resumed_steps', resumed_steps)
  end
end

-- Everything but the blobs, which are not in Redis.
local function erase(id)
  for _, name in ipairs(redis.call('SMEMBERS', 'denoised:queues')) do
    for _, state in ipairs({ 'finished', 'failed', 'canceled' }) do
      redis.call('ZREM', 'rq:' .. state .. ':' .. name, id)
    end
  end
  local owner = redis.call('HGET', job_key(id), 'owner') or ''
  redis.call('DEL', job_key(id), 'rq:results:' .. id, event_key(id))
  redis.call('ZREM', listing('denoised:jobs', owner), id)
  redis.call('ZREM', 'denoised:expiry', id)
end

-- Jobs that would be served before this one, by class and place; nil unless queued.
local function queue_position(id, origin, status)
  if status ~= 'queued' then return -1 end
  local place = redis.call('LPOS', queue_key(origin), id)
  if not place then return -1 end
  local model, class = origin:match('^(.*):([^:]*)$')
  for _, urgent in ipairs({ 'interactive', 'standard', 'batch' }) do
    if urgent == class or not model then break end
    place = place + redis.call('LLEN', queue_key(model .. ':' .. urgent))
  end
  return place
end

local function record(id)
  local flat = redis.call('HGETALL', job_key(id))
  if #flat == 0 then return { flat, -1 } end
  local head = redis.call('HMGET', job_key(id), 'origin', 'status')
  return { flat, queue_position(id, head[1] or '', head[2]) }
end
