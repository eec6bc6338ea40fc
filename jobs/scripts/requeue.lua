-- A worker hands a job back: drain, or a dying worker's last word. Only the holder of the lease may.
-- ARGV: id, execution id, cause, refund the attempt ('1'|'0'), trace for worker_lost, gpu seconds,
--       steps, resumed steps, ttl, event ttl
-- Returns '' fenced off | 'again' done by an earlier send | 'requeued' | 'failed' | 'canceled'
local id, exec = ARGV[1], ARGV[2]
local job = load_job(id)
if not job then return '' end
if job.exec ~= exec then return job.last_exec == exec and 'again' or '' end
add_usage(id, ARGV[6], ARGV[7], ARGV[8])
settle_share(job, ARGV[6])
return put_back(id, job, exec, ARGV[3], ARGV[4] == '1', ARGV[5], ARGV[9], ARGV[10])
