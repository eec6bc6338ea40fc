-- Takes uploads whose time is over out of the listing. ARGV: ids
for _, id in ipairs(ARGV) do
  if redis.call('EXISTS', 'denoised:file:' .. id) == 0 then
    redis.call('ZREM', 'denoised:files', id)
  end
end
return #ARGV
