-- Removes an ended job. Its id stays due in the expiry index, for the keeper to sweep its blobs.
-- ARGV: id, owner
-- Returns {'missing'} | {'active', status} | {'deleted', outputs JSON}
local id = ARGV[1]
local job = load_job(id)
if not job or job.owner ~= ARGV[2] then return { 'missing' } end
if job.status == 'queued' or job.status == 'started' then return { 'active', job.status } end
local outputs = redis.call('HGET', job_key(id), 'outputs')
erase(id)
redis.call('ZADD', 'denoised:expiry', now, id)
return { 'deleted', outputs or '' }
