-- A worker hands a job back: drain, or a dying worker's last word. Only the holder of the lease may.
-- ARGV: id, execution id, cause, refund the attempt ('1'|'0'), more about the cause or '',
--       gpu seconds or '' when it cannot tell, steps, resumed steps, ttl, event ttl
-- Returns '' fenced off | 'again' done by an earlier send | 'requeued' | 'failed' | 'canceled'
local id, exec = ARGV[1], ARGV[2]
local job = load_job(id)
if not job then return '' end
if job.exec ~= exec then return job.last_exec == exec and 'again' or '' end
if ARGV[6] == '' then
  settle_lost(id, job)
else
  add_usage(id, ARGV[6], ARGV[7], ARGV[8])
  settle_share(job, ARGV[6])
end
return put_back(id, job, exec, ARGV[3], ARGV[4] == '1', ARGV[5], ARGV[9], ARGV[10])
