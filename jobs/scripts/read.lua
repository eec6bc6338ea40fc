-- One job with its place in the queue. ARGV: id. Returns {hash, queue position or -1,
-- estimated start in us or '', estimated end in us or ''}
return record(ARGV[1])
