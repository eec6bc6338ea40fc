-- Takes what has expired out of a listing.
-- ARGV: listing, how the names of its hashes begin, ids
for i = 3, #ARGV do
  if redis.call('EXISTS', ARGV[2] .. ARGV[i]) == 0 then redis.call('ZREM', ARGV[1], ARGV[i]) end
end
