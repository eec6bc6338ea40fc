-- Gives a worker up to `limit` jobs: status, attempt, lease and fencing token in one step.
--
-- Who is next, of the keys with jobs in these queues (what came without a key counts as one):
-- 1. Within a key the job with the earliest due time: its submission plus the allowance of its
--    class. The key competes in the most urgent class that it has waiting.
-- 2. Of the classes, the one with the key that is due earliest: its oldest job's submission or its
--    latest claim, whichever is later, plus the allowance of the class.
-- 3. Within that class the key with the least tag, which counts its GPU-seconds: start-time fair
--    queueing. A claim moves the virtual time up to the tag if that is later, and the tag to the
--    virtual time plus the job's estimated cost: a key that was idle has no arrears, one that was
--    alone no debt. `add_usage` replaces the estimate by what was used.
-- What this guarantees is said at `jobs.lease.LeaseClient.claim`.
--
-- ARGV: worker, claim id, lease seconds, memo ttl, limit, ttl, event ttl,
--       then per queue: name, allowance in us
-- Returns {now_us, {{id, execution id, queue, data, model, ...}, ...},
--         {model of a job whose deadline had passed, ...}}
local worker, claim, lease, limit = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[5])
local ttl, event_ttl = ARGV[6], ARGV[7]
local memo = 'denoised:claim:' .. claim
local UNMEASURED_COST = 1
local granted, late = {}, {}

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
  return { now_us, granted, late }
end

local owners = {}

local function owner_of(name)
  owners[name] = owners[name] or { name = name, lanes = {}, room = room_of(name) }
  return owners[name]
end

-- Reads the head of a lane. RQ's tools put everything on the list without a key: what belongs to
-- one goes to its own lane.
local look
local function lane_of(queue, owner)
  local lane = owner.lanes[queue.name]
  if not lane then
    lane = { queue = queue, owner = owner, key = lane_key(queue.name, owner.name) }
    owner.lanes[queue.name] = lane
  end
  look(lane)
end

function look(lane)
  lane.id = redis.call('LINDEX', lane.key, 0)
  local queue, owner = lane.queue.name, lane.owner.name
  if not lane.id then
    if owner ~= '' then
      redis.call('SREM', 'denoised:lanes', lane_name(queue, owner))
      redis.call('SREM', 'rq:queues', lane.key)
      weigh_anew(lane_name(queue, owner))
    end
    return
  end
  local v = redis.call('HMGET', job_key(lane.id), 'submitted_us', 'owner', 'cost')
  if owner == '' and v[2] and v[2] ~= '' then
    redis.call('LPOP', lane.key)
    join_lane('RPUSH', lane.id, queue, v[2], v[3])
    lane_of(lane.queue, owner_of(v[2]))
    return look(lane)
  end
  lane.submitted = tonumber(v[1]) or 0
  lane.due = lane.submitted + lane.queue.allowance
end

-- Rule 1. Sets what the key competes with, or nothing.
local function compete(owner)
  owner.lane = nil
  local oldest
  if owner.room <= 0 then return end
  for _, lane in pairs(owner.lanes) do
    if lane.id then
      if not owner.lane or lane.due < owner.lane.due then owner.lane = lane end
      oldest = math.min(oldest or lane.submitted, lane.submitted)
      owner.allowance = math.min(owner.allowance or math.huge, lane.queue.allowance)
    end
  end
  if not owner.lane then return end
  owner.tag = owner.tag or tonumber(redis.call('HGET', 'denoised:fair', owner.name) or 0)
  owner.served = owner.served or tonumber(redis.call('HGET', 'denoised:served', owner.name) or 0)
  owner.due = math.max(oldest, owner.served) + owner.allowance
end

-- Rules 2 and 3.
local function next_lane()
  local first, best
  for _, owner in pairs(owners) do
    owner.allowance = nil
    compete(owner)
    if owner.lane and (not first or owner.due < first.due) then first = owner end
  end
  if not first then return nil end
  for _, owner in pairs(owners) do
    if owner.lane and owner.allowance == first.allowance and (not best
        or owner.tag < best.tag or (owner.tag == best.tag and owner.due < best.due)) then
      best = owner
    end
  end
  return best.lane
end

local queues = {}
for i = 8, #ARGV, 2 do
  local queue = { name = ARGV[i], allowance = tonumber(ARGV[i + 1]) }
  queues[#queues + 1] = queue
  for _, name in ipairs(owners_of(queue.name)) do lane_of(queue, owner_of(name)) end
end

while #granted < limit do
  local lane = next_lane()
  if not lane then break end
  local id = redis.call('LPOP', lane.key)
  local job, queue, owner = load_job(id), lane.queue.name, lane.owner
  weigh(lane_name(queue, owner.name), job and job.cost, -1)
  -- Anything else on the list is a leftover: cancelled, expired, or taken already.
  if job and job.status == 'queued' then
    local key, exec = job_key(id), claim .. '-' .. (#granted + 1)
    if job.final_event then revive(id, job) end
    if job.is_late then
      settle_late(id, job, '', ttl, event_ttl)
      late[#late + 1] = job.model
    else
      local attempt = redis.call('HINCRBY', key, 'attempt', 1)
      local charge = tonumber(job.cost or '') or mean_cost(job.model or '') or UNMEASURED_COST
      local virtual_time = math.max(owner.tag,
        tonumber(redis.call('GET', 'denoised:vtime') or 0))
      owner.tag, owner.served, owner.room = virtual_time + charge, tonumber(now_us), owner.room - 1
      redis.call('SET', 'denoised:vtime', string.format('%.6f', virtual_time))
      redis.call('HSET', 'denoised:fair', owner.name, string.format('%.6f', owner.tag))
      redis.call('HSET', 'denoised:served', owner.name, now_us)
      redis.call('HSET', key, 'status', 'started', 'worker_name', worker, 'exec', exec,
        'started_at', iso, 'started_us', now_us, 'origin', queue,
        'step', redis.call('HGET', key, 'checkpoint_step') or 0,
        'charged', string.format('%.6f', charge))
      redis.call('HDEL', key, unpack(BOOKED))
      redis.call('ZADD', 'denoised:wip', now + lease, id .. ':' .. exec)
      -- For RQ's tools. Its score must never lapse: their clean-up would fail the job unfenced.
      redis.call('ZADD', 'rq:wip:' .. queue, '+inf', id .. ':' .. exec)
      if job.owner ~= '' then redis.call('SADD', 'denoised:held:' .. job.owner, id) end
      redis.call('RPUSH', memo, id .. ':' .. exec)
      emit(id, 'started', 'started', nil, attempt, ',"worker":' .. cjson.encode(worker))
      grant(id, exec)
    end
  end
  look(lane)
end

if #granted > 0 then
  redis.call('EXPIRE', memo, ARGV[4])
else
  -- A model with nothing waiting needs no doorbell tokens: they would only cause empty rounds.
  local models = {}
  for _, queue in ipairs(queues) do models[queue.name:match('^(.*):[^:]*$')] = true end
  for model in pairs(models) do
    local waiting = 0
    for _, class in ipairs(CLASSES) do waiting = waiting + waiting_on(model .. ':' .. class) end
    if waiting == 0 then redis.call('DEL', 'denoised:wake:' .. model) end
  end
end
return { now_us, granted, late }
