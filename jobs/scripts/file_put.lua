-- Records an upload whose blob is in place. ARGV: id, data (JSON), blob id, ttl,
-- owner or ''
-- Returns the fields of its hash.
local function file_key(id) return 'denoised:file:' .. id end
local key = file_key(ARGV[1])
redis.call('HSET', key, 'data', ARGV[2], 'blob', ARGV[3], 'owner', ARGV[5],
  'created_us', now_us,
  'expires_us', string.format('%.0f', now_us + ARGV[4] * 1e6))
redis.call('EXPIRE', key, ARGV[4])
list_entry('denoised:files', ARGV[5], ARGV[1], file_key)
return redis.call('HGETALL', key)
