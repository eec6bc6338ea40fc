-- Another request counts on an upload: its time to live starts anew. ARGV: id, ttl
-- Returns the fields of its hash, none when there is no such upload.
local key = 'denoised:file:' .. ARGV[1]
if redis.call('EXPIRE', key, ARGV[2]) == 1 then
  redis.call('HSET', key, 'wanted', '1', 'expires_us', string.format('%.0f', now_us + ARGV[2] * 1e6))
end
return redis.call('HGETALL', key)
