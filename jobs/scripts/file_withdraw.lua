-- Forgets an upload that came with a request in vain, unless another request counts on it by now.
-- ARGV: id, blob id, owner or ''
-- Returns 1 if it is forgotten, else 0.
local key = 'denoised:file:' .. ARGV[1]
local v = redis.call('HMGET', key, 'blob', 'wanted')
if v[1] ~= ARGV[2] or v[2] then return 0 end
redis.call('DEL', key)
redis.call('ZREM', listing('denoised:files', ARGV[3]), ARGV[1])
return 1
