-- One job with its place in the queue. ARGV: id. Returns {hash, queue position or -1}
return record(ARGV[1])
