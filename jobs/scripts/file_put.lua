-- Records an upload whose blob is in place. One that replaces another's is wanted by two requests, so
-- that neither takes it away with itself. ARGV: id, data (JSON), blob id, ttl, owner or ''
-- Returns the fields of its hash.
local key = 'denoised:file:' .. ARGV[1]
local before = redis.call('HGET', key, 'blob')
-- The same may have been sent twice, over a connection that broke.
if before and before ~= ARGV[3] then redis.call('HSET', key, 'wanted', '1') end
redis.call('HSET', key, 'data', ARGV[2], 'blob', ARGV[3], 'owner', ARGV[5],
  'created_us', now_us,
  'expires_us', string.format('%.0f', now_us + ARGV[4] * 1e6))
redis.call('EXPIRE', key, ARGV[4])
redis.call('ZADD', listing('denoised:files', ARGV[5]), now_us, ARGV[1])
return redis.call('HGETALL', key)
