-- Forgets jobs whose time is over, their blobs being gone already. ARGV: ids
-- Returns how many were erased; one that RQ's tools put back to work is spared.
local erased = 0
for _, id in ipairs(ARGV) do
  local status = redis.call('HGET', job_key(id), 'status')
  if status == 'queued' or status == 'started' then
    redis.call('ZREM', 'denoised:expiry', id)
  else
    erase(id)
    erased = erased + 1
  end
end
return erased
