-- Cancels: a queued job at once, also one that a worker holds only until its model is loaded; a
-- running one by a flag its worker reads, an ended one not at all.
-- ARGV: id, owner, ttl, event ttl
-- Returns {settled now (1|0), hash, queue position, estimated start, end}; no hash for a job of another owner
local id = ARGV[1]
local job = load_job(id)
if job and job.owner ~= ARGV[2] then return { 0, {}, -1, '', '' } end
local settled = 0
if job and job.status == 'queued' then
  if job.final_event then revive(id, job) end
  leave_lane(id, job)
  redis.call('HSET', job_key(id), 'cancel', now_us)
  settle_cancelled(id, job, '', CANCELLED_WHILE_QUEUED, ARGV[3], ARGV[4])
  settled = 1
elseif job and job.status == 'started' and redis.call('HGET', job_key(id), 'stage') == 'loading' then
  -- Nothing has been done for it. Its worker may look up only when the load is over, and finds the
  -- lease gone.
  redis.call('HSETNX', job_key(id), 'cancel', now_us)
  settle_share(job, 0)
  settle_cancelled(id, job, job.exec or '', CANCELLED_WHILE_RUNNING, ARGV[3], ARGV[4])
  settled = 1
elseif job and job.status == 'started' then
  redis.call('HSETNX', job_key(id), 'cancel', now_us)
end
local state = record(id)
return { settled, unpack(state) }
