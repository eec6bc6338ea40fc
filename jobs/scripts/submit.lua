-- Accepts a job, all or nothing: idempotency, admission, hash, queue, first event, index, doorbell.
-- ARGV: id, model, priority, data, meta, description, deterministic, total_steps, max_attempts,
--       queue limit, idempotency key or '', fingerprint, idempotency ttl, owner or '',
--       estimated GPU-seconds or '', estimated seconds of run time or '', deadline seconds or ''
-- Returns {'created', submitted_us, position, estimated start, estimated end}
--         | {'existing', id} | {'conflict', id} | {'full', seconds until there is room or ''}
--         | {'quota', name, limit, seconds until there is room or ''}
--         | {'late', estimated seconds to its end, of which it runs}
local id, model, priority, owner = ARGV[1], ARGV[2], ARGV[3], ARGV[14]
local queue = model .. ':' .. priority
local key = job_key(id)
local cost, run, deadline = ARGV[15], ARGV[16], tonumber(ARGV[17])

-- A client that lost its connection sends the script again; the id tells.
local submitted = redis.call('HGET', key, 'submitted_us')
if submitted then
  return { 'created', submitted, outlook(id, queue, owner, redis.call('HGET', key, 'status'), run) }
end

local idem = ARGV[11] ~= '' and 'denoised:idem:' .. ARGV[11] or nil
if idem then
  local earlier = redis.call('HMGET', idem, 'id', 'fingerprint')
  if earlier[1] and redis.call('EXISTS', job_key(earlier[1])) == 1 then
    return { earlier[2] == ARGV[12] and 'existing' or 'conflict', earlier[1] }
  end
end

local waiting, mine, sharing = 0, 0, {}
for _, name in ipairs(redis.call('SMEMBERS', 'denoised:queues')) do
  local _, lengths = lanes_of(name)
  for i, whose in ipairs(owners_of(name)) do
    local length = lengths[i]
    waiting = waiting + length
    if whose == owner then mine = mine + length end
    if length > 0 then sharing[whose] = 1 end
  end
end
local keys_waiting = 0
for _ in pairs(sharing) do keys_waiting = keys_waiting + 1 end

-- Seconds in which one of so many waiting keys gets a job through: by what a job of this model takes
-- and who serves the queue, else at the pace of the latest finishes; '' while neither is known.
local function pause(share)
  local _, mean_run = mean_cost(model)
  local workers = living_on(queue)
  if mean_run and workers > 0 then return string.format('%.6f', share * mean_run / workers) end
  local finishes = redis.call('LRANGE', 'denoised:finishes', 0, -1)
  if #finishes < 2 then return '' end
  return string.format('%.6f', share * (finishes[1] - finishes[#finishes]) / (#finishes - 1))
end

if owner ~= '' then
  local quota = redis.call('HMGET', 'denoised:apikey:' .. owner,
    'max_queued', 'jobs_per_day', 'gpu_seconds_per_day')
  local used = redis.call('HMGET', usage_key(owner), 'jobs', 'gpu_seconds')
  local day_ends = DAY - seconds % DAY
  for _, rule in ipairs({ { 'max_queued', quota[1], mine },
      { 'jobs_per_day', quota[2], used[1] },
      { 'gpu_seconds_per_day', quota[3], used[2] } }) do
    if rule[2] and tonumber(rule[3] or 0) >= tonumber(rule[2]) then
      local wait = rule[1] == 'max_queued' and pause(keys_waiting) or tostring(day_ends)
      return { 'quota', rule[1], rule[2], wait }
    end
  end
end
if waiting >= tonumber(ARGV[10]) then return { 'full', pause(1) } end
if deadline and run ~= '' then
  local _, wait = ahead_of(queue, redis.call('LLEN', lane_key(queue, owner)))
  if wait and wait + run > deadline then
    return { 'late', string.format('%.6f', wait + run), run }
  end
end

redis.call('HSET', key, 'status', 'queued', 'origin', queue, 'created_at', iso,
  'enqueued_at', iso, 'data', ARGV[4], 'meta', ARGV[5], 'description', ARGV[6],
  'model', model, 'priority', priority, 'deterministic', ARGV[7], 'total_steps', ARGV[8],
  'max_attempts', ARGV[9], 'submitted_us', now_us, 'attempt', 0, 'step', 0, 'owner', owner)
if cost ~= '' then redis.call('HSET', key, 'cost', cost, 'run', run) end
if deadline then
  redis.call('HSET', key, 'deadline_us', string.format('%.0f', now_us + deadline * 1e6))
  redis.call('ZADD', 'denoised:deadlines', now + deadline, id)
end
join_lane('RPUSH', id, queue, owner, cost)
redis.call('ZADD', listing('denoised:jobs', owner), now_us, id)
if owner ~= '' then
  redis.call('HINCRBY', usage_key(owner), 'jobs', 1)
  redis.call('EXPIRE', usage_key(owner), 2 * DAY)
end
if idem then
  redis.call('HSET', idem, 'id', id, 'fingerprint', ARGV[12])
  redis.call('EXPIRE', idem, ARGV[13])
end
emit(id, 'queued', 'queued', nil, 0, '')
local loading = redis.call('HMGET', load_key(model), 'bytes', 'ready_us')
if loading[1] then
  emit_loading(id, loading[1],
    loading[2] == '' and '' or math.max(0, (loading[2] - now_us) / 1e6))
end
wake(model)
local last = redis.call('LLEN', lane_key(queue, owner)) - 1
local position, starts, ends = outlook(id, queue, owner, 'queued', run, last)
if ends ~= '' then redis.call('HSET', key, 'eta_us', ends) end
return { 'created', now_us, position, starts, ends }
