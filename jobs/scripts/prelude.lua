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
local DEADLINE_PASSED = '{"code":"deadline_exceeded","message":"the deadline passed before it was '
  .. 'done","param":null,"retryable":false}'
local CAUSES_KEPT = 10

-- The fields the scripts decide by; nil when there is no such job.
local FIELDS = { 'status', 'exec', 'cancel', 'attempt', 'max_attempts', 'origin', 'model',
                 'last_exec', 'final_event', 'started_us', 'worker_name', 'owner',
                 'deadline_us', 'cost', 'charged', 'submitted_us', 'eta_us' }
local function load_job(id)
  local values = redis.call('HMGET', job_key(id), unpack(FIELDS))
  if not values[1] then return nil end
  local job = {}
  for i, name in ipairs(FIELDS) do job[name] = values[i] or nil end
  job.attempt = tonumber(job.attempt or 0)
  job.max_attempts = tonumber(job.max_attempts or 1)
  job.origin = job.origin or ''
  job.owner = job.owner or ''
  job.is_late = job.deadline_us and now * 1e6 > tonumber(job.deadline_us)
  return job
end

-- A listing; every API key has its own. Entries whose hash has expired are the keeper's to remove.
local function listing(name, owner) return owner == '' and name or name .. ':' .. owner end

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

-- Tells a waiting job that its model is being loaded; seconds '' while none were ever measured.
local function emit_loading(id, bytes, seconds)
  local v = redis.call('HMGET', job_key(id), 'attempt', 'step', 'total_steps')
  local step, total = v[2] or '0', v[3] or '0'
  local percent = tonumber(total) > 0 and 100 * step / total or 0
  emit(id, 'progress', 'queued', 'loading', v[1] or 0,
    ',"progress":{"step":' .. step .. ',"total_steps":' .. total .. ',"percent":'
    .. string.format('%.1f', percent) .. ',"eta_seconds":null},"loading":{"bytes":' .. bytes
    .. ',"eta_seconds":' .. (seconds == '' and 'null' or string.format('%.3f', seconds)) .. '}')
end

local DAY = 86400
local function usage_key(owner)
  return 'denoised:usage:' .. owner .. ':' .. math.floor(seconds / DAY)
end

local function load_key(model) return 'denoised:loading:' .. model end

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
  if job.owner ~= '' then redis.call('SREM', 'denoised:held:' .. job.owner, id) end
end

-- Lanes: what came without a key waits in RQ's list of its queue, what came with one in a list of
-- its own beside it, which RQ's tools show as a queue. `denoised:backlog` has the estimated
-- GPU-seconds of each lane, `denoised:backlog:jobs` of how many jobs they are.
local CLASSES = { 'interactive', 'standard', 'batch' }
local function lane_name(queue, owner) return owner == '' and queue or queue .. '@' .. owner end
local function lane_key(queue, owner) return queue_key(lane_name(queue, owner)) end

-- Owners with a lane on a queue; read once a script, and again after a change.
local lanes
local function owners_of(queue)
  if not lanes then
    lanes = {}
    for _, lane in ipairs(redis.call('SMEMBERS', 'denoised:lanes')) do
      local name, owner = lane:match('^(.*)@(.-)$')
      lanes[name] = lanes[name] or { '' }
      table.insert(lanes[name], owner)
    end
  end
  return lanes[queue] or { '' }
end

local function weigh(lane, cost, sign)
  if not cost or cost == '' then return end
  redis.call('HINCRBYFLOAT', 'denoised:backlog', lane, sign * cost)
  redis.call('HINCRBY', 'denoised:backlog:jobs', lane, sign)
end

local function weigh_anew(lane)
  redis.call('HDEL', 'denoised:backlog', lane)
  redis.call('HDEL', 'denoised:backlog:jobs', lane)
end

local function join_lane(push, id, queue, owner, cost)
  local key = lane_key(queue, owner)
  redis.call('SADD', 'rq:queues', key)
  redis.call('SADD', 'denoised:queues', queue)
  if owner ~= '' and redis.call('SADD', 'denoised:lanes', lane_name(queue, owner)) == 1 then
    lanes = nil
  end
  -- RQ's tools take jobs off without weighing them.
  if redis.call(push, key, id) == 1 then weigh_anew(lane_name(queue, owner)) end
  weigh(lane_name(queue, owner), cost, 1)
end

local function leave_lane(id, job)
  local left = redis.call('LREM', lane_key(job.origin, job.owner), 0, id)
  if left > 0 then weigh(lane_name(job.origin, job.owner), job.cost, -1) end
  -- Where RQ's tools put it.
  if job.owner ~= '' then redis.call('LREM', queue_key(job.origin), 0, id) end
end

-- The lanes of a queue, and how many jobs wait in each.
local function lanes_of(queue)
  local names, lengths = {}, {}
  for i, owner in ipairs(owners_of(queue)) do
    names[i] = lane_name(queue, owner)
    lengths[i] = redis.call('LLEN', queue_key(names[i]))
  end
  return names, lengths
end

local function waiting_on(queue)
  local waiting = 0
  local _, lengths = lanes_of(queue)
  for _, length in ipairs(lengths) do waiting = waiting + length end
  return waiting
end

-- When the job at the head of a lane was submitted, in us; nil without one.
local function head_since(queue, owner)
  local head = redis.call('LINDEX', lane_key(queue, owner), 0)
  return head and tonumber(redis.call('HGET', job_key(head), 'submitted_us') or '')
end

-- How many more jobs of a key may run now. What came without one has no limit.
local function room_of(owner)
  local most = owner ~= '' and redis.call('HGET', 'denoised:apikey:' .. owner, 'max_running')
  if not most then return math.huge end
  local held = 'denoised:held:' .. owner
  local room = most - redis.call('SCARD', held)
  if room > 0 then return room end
  -- Jobs that RQ's tools deleted while they ran are still in the set.
  for _, id in ipairs(redis.call('SMEMBERS', held)) do
    if redis.call('HGET', job_key(id), 'status') ~= 'started' then
      redis.call('SREM', held, id)
      room = room + 1
    end
  end
  return room
end

-- GPU-seconds and seconds of run time of a job of this model on average; nil before the first.
local function mean_cost(model)
  local mean = redis.call('HGET', 'denoised:costs:mean', model)
  if not mean then return nil, nil end
  local gpu, run = mean:match('^%S+ (%S+) (%S+)$')
  return tonumber(gpu), tonumber(run)
end

-- GPU-seconds of all that waits in each lane; nil while something in it is not measured.
local AT_ONCE = 1000
local function lane_costs(names, lengths, mean)
  local costs = {}
  for first = 1, #names, AT_ONCE do
    local last = math.min(first + AT_ONCE - 1, #names)
    local weights = redis.call('HMGET', 'denoised:backlog', unpack(names, first, last))
    local counts = redis.call('HMGET', 'denoised:backlog:jobs', unpack(names, first, last))
    for i = first, last do
      local known = tonumber(counts[i - first + 1] or 0)
      local unknown = math.max(lengths[i] - known, 0)
      local weight = math.max(tonumber(weights[i - first + 1] or 0), 0)
      costs[i] = lengths[i] == 0 and 0
        or (unknown == 0 or mean) and weight + unknown * (mean or 0)
    end
  end
  return costs
end

-- GPU-seconds left of what runs of a queue, nil while they are not measured. Of very many jobs some
-- stand for all: which come first in the set is chance.
local SAMPLED = 64
local function running_cost(queue, mean)
  local members = redis.call('ZRANGE', 'rq:wip:' .. queue, 0, SAMPLED - 1)
  local sum = 0
  for _, member in ipairs(members) do
    local v = redis.call('HMGET', job_key(member:match('^[^:]+')), 'eta', 'cost')
    local left = tonumber(v[1] or '') or tonumber(v[2] or '') or mean
    if not left then return nil end
    sum = sum + left
  end
  if #members < SAMPLED then return sum end
  return sum * redis.call('ZCARD', 'rq:wip:' .. queue) / SAMPLED
end

-- Workers that take a queue's jobs; looked up once a script. RQ's set names dead ones, too, until the
-- keeper has been by.
local living = {}
local function living_on(queue)
  if not living[queue] then
    living[queue] = 0
    for _, worker in ipairs(redis.call('SMEMBERS', 'rq:workers:' .. queue)) do
      local state = redis.call('HGET', worker, 'state')
      if state and state ~= 'draining' then living[queue] = living[queue] + 1 end
    end
  end
  return living[queue]
end

-- What is served before the `place`th job of a lane, as `claim` would do it: jobs of this model, and
-- seconds until then over all workers of the queue, nil until everything in it is measured.
local function ahead_of(queue, place)
  local model, class = queue:match('^(.*):([^:]*)$')
  if not model then return place, nil end
  local mean = mean_cost(model)
  local jobs, seconds = 0, 0
  for _, urgent in ipairs(CLASSES) do
    local name = model .. ':' .. urgent
    local names, lengths = lanes_of(name)
    local costs = lane_costs(names, lengths, mean)
    for i, length in ipairs(lengths) do
      -- Keys of one class take turns.
      local count = urgent == class and math.min(length, place) or length
      jobs = jobs + count
      if count > 0 then seconds = seconds and costs[i] and seconds + costs[i] * count / length end
    end
    local running = seconds and running_cost(name, mean)
    seconds = running and seconds + running
    if urgent == class then break end
  end
  local workers = living_on(queue)
  return jobs, workers > 0 and seconds and seconds / workers or nil
end

-- Nothing points at the checkpoint any more; its blob is its last worker's or the keeper's to remove.
local function drop_checkpoint(id)
  redis.call('HDEL', job_key(id), 'checkpoint', 'checkpoint_step', 'checkpoint_sha256')
end

-- RQ's tools can put a job that had ended back on its queue: it starts a new life with a fresh
-- event log and all its attempts.
local function revive(id, job)
  redis.call('HDEL', job_key(id), 'final_event', 'last_exec', 'error', 'outputs', 'cancel',
    'deadline_us', 'causes')
  redis.call('HSET', job_key(id), 'attempt', 0)
  drop_checkpoint(id)
  redis.call('PERSIST', job_key(id))
  redis.call('PERSIST', 'rq:results:' .. id)
  redis.call('DEL', event_key(id))
  redis.call('ZREM', 'denoised:expiry', id)
  job.attempt, job.cancel, job.final_event, job.is_late = 0, nil, nil, nil
  emit(id, 'requeued', 'queued', nil, 0, ',"cause":"operator","step":0')
end

-- RQ's form of a text shorter than 64 KB: zlib, not compressed, then base64.
local DIGITS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/'
local function trace_of(text)
  local a, b = 1, 0
  for i = 1, #text do
    a = (a + text:byte(i)) % 65521
    b = (b + a) % 65521
  end
  local function two_bytes(n) return string.char(math.floor(n / 256), n % 256) end
  local zlib = '\120\1\1' .. two_bytes(#text):reverse() .. two_bytes(65535 - #text):reverse()
    .. text .. two_bytes(b) .. two_bytes(a)
  local digits = {}
  for i = 1, #zlib, 3 do
    local x, y, z = zlib:byte(i, i + 2)
    local n = x * 65536 + (y or 0) * 256 + (z or 0)
    for place, there in ipairs({ true, true, y ~= nil, z ~= nil }) do
      local digit = math.floor(n / 64 ^ (4 - place)) % 64 + 1
      digits[#digits + 1] = there and DIGITS:sub(digit, digit) or '='
    end
  end
  return table.concat(digits)
end

-- The one place where a terminal state is written. `ending`: status (RQ's word), error and outputs
-- (JSON or ''), extra (event fragment), result (field list of an RQ result, or nil).
local function settle(id, job, exec, ending, ttl, event_ttl)
  local key = job_key(id)
  drop_lease(id, job)
  redis.call('HSET', key, 'status', ending.status, 'ended_at', iso, 'last_exec', exec,
    'error', ending.error, 'outputs', ending.outputs)
  redis.call('HDEL', key, 'exec', 'stage', 'eta')
  drop_checkpoint(id)
  local kind = PUBLIC[ending.status]
  local entry = emit(id, kind, ending.status, nil, job.attempt, ending.extra)
  redis.call('HSET', key, 'final_event', entry)
  if job.deadline_us then redis.call('ZREM', 'denoised:deadlines', id) end
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

local function settle_late(id, job, exec, ttl, event_ttl)
  settle(id, job, exec, { status = 'failed', error = DEADLINE_PASSED, outputs = '',
    extra = ',"error":' .. DEADLINE_PASSED,
    result = { 'type', '2', 'exc_string', trace_of('deadline_exceeded: the deadline passed') } },
    ttl, event_ttl)
end

-- Notes why an attempt that counts was lost; returns the latest ten such causes of the job, without
-- and with what more is said of them. The latter may be about other jobs: it is for operators.
local function note_cause(id, cause, detail)
  local causes = cjson.decode(redis.call('HGET', job_key(id), 'causes') or '[]')
  causes[#causes + 1] = detail == '' and cause or cause .. ' (' .. detail .. ')'
  if #causes > CAUSES_KEPT then table.remove(causes, 1) end
  redis.call('HSET', job_key(id), 'causes', cjson.encode(causes))
  local names = {}
  for i, text in ipairs(causes) do names[i] = text:match('^%S+') end
  return table.concat(names, ', '), table.concat(causes, '; ')
end

-- An attempt ends without a result. `detail` says more about the cause, or is empty. Returns what
-- became of the job: requeued, failed, canceled.
local function put_back(id, job, exec, cause, refund, detail, ttl, event_ttl)
  if job.cancel or job.status == 'canceled' then
    settle_cancelled(id, job, exec, CANCELLED_WHILE_RUNNING, ttl, event_ttl)
    return 'canceled'
  end
  local names, causes
  if not refund then names, causes = note_cause(id, cause, detail) end
  if not refund and job.attempt >= job.max_attempts then
    local why = 'every allowed attempt lost its worker: '
    local lost = '{"code":"worker_lost","message":' .. cjson.encode(why .. names)
      .. ',"param":null,"retryable":true}'
    settle(id, job, exec, { status = 'failed', error = lost, outputs = '',
      extra = ',"error":' .. lost,
      result = { 'type', '2', 'exc_string', trace_of('worker_lost: ' .. why .. causes) } }, ttl, event_ttl)
    return 'failed'
  end
  local key = job_key(id)
  drop_lease(id, job)
  local step = redis.call('HGET', key, 'checkpoint_step') or '0'
  redis.call('HSET', key, 'status', 'queued', 'enqueued_at', iso, 'last_exec', exec, 'step', step)
  redis.call('HDEL', key, 'exec', 'stage', 'eta', 'worker_name', 'started_at', 'started_us')
  if refund then redis.call('HINCRBY', key, 'attempt', -1) end
  join_lane('LPUSH', id, job.origin, job.owner, job.cost)
  emit(id, 'requeued', 'queued', nil, job.attempt - (refund and 1 or 0),
    ',"cause":' .. cjson.encode(cause) .. ',"step":' .. step)
  wake(job.model or '')
  return 'requeued'
end

-- Of `{ id, job }` pairs that go to the front of their queues one after the other, the oldest is to
-- be put back last.
local function newest_first(held)
  table.sort(held, function(a, b)
    return tonumber(a.job.submitted_us or 0) > tonumber(b.job.submitted_us or 0)
  end)
  return held
end

-- Books what the present attempt has cost in all. What its checkpoints have booked counts once.
local BOOKED = { 'booked_gpu_seconds', 'booked_steps', 'booked_resumed_steps' }
local function add_usage(id, gpu_seconds, steps, resumed_steps)
  local key = job_key(id)
  local booked = redis.call('HMGET', key, unpack(BOOKED))
  for i, cost in ipairs({ gpu_seconds, steps, resumed_steps }) do
    local more = tonumber(cost) - tonumber(booked[i] or 0)
    if more > 0 then
      redis.call('HINCRBYFLOAT', key, BOOKED[i]:sub(8), string.format('%.6f', more))
      redis.call('HSET', key, BOOKED[i], cost)
    end
  end
end

-- What one attempt has cost, for its key's day and, in place of what the claim had charged for it by
-- estimate, for its key's share.
local function settle_share(job, gpu_seconds)
  if job.charged then
    redis.call('HINCRBYFLOAT', 'denoised:fair', job.owner,
      string.format('%.6f', gpu_seconds - job.charged))
  end
  if job.owner ~= '' then
    redis.call('HINCRBYFLOAT', usage_key(job.owner), 'gpu_seconds', gpu_seconds)
    redis.call('EXPIRE', usage_key(job.owner), 2 * DAY)
  end
end

-- The same of one that cannot tell: what its checkpoints have booked, and no less than the estimate.
local function settle_lost(id, job)
  local booked = redis.call('HGET', job_key(id), BOOKED[1])
  settle_share(job, string.format('%.6f',
    math.max(tonumber(booked or 0), tonumber(job.charged or 0))))
end

-- Everything but the blobs, which are not in Redis, and but the entry in the listing of an API key
-- where the hash has expired, which knew the key: the keeper prunes those.
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

-- Jobs that would be served before this one, -1 unless it is queued, and when it will start and
-- end, in us, '' until that is measured. Its `place` in its lane is looked for unless it is known:
-- in a long lane that takes most of the time.
local function outlook(id, origin, owner, status, run, place)
  place = place or status == 'queued' and redis.call('LPOS', lane_key(origin, owner), id)
  if not place then return -1, '', '' end
  local jobs, wait = ahead_of(origin, place)
  local _, mean_run = mean_cost(origin:match('^(.*):') or origin)
  run = tonumber(run or '') or mean_run
  if not wait or not run then return jobs, '', '' end
  return jobs, string.format('%.0f', now_us + wait * 1e6),
    string.format('%.0f', now_us + (wait + run) * 1e6)
end

-- {hash, queue position, estimated start, estimated end}
local function record(id)
  local flat = redis.call('HGETALL', job_key(id))
  if #flat == 0 then return { flat, -1, '', '' } end
  local v = redis.call('HMGET', job_key(id), 'origin', 'owner', 'status', 'run')
  return { flat, outlook(id, v[1] or '', v[2] or '', v[3], v[4]) }
end
