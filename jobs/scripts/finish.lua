-- Ends a job; only the holder of the lease may. Sent twice, it is done once.
-- ARGV: id, execution id, status, error JSON or '', outputs JSON or '', event fragment,
--       return value (base64) or '', trace (base64) or '', gpu seconds, steps, resumed steps,
--       ttl, event ttl, shape or '', then what it took: encoding, a step, its share of a step's
--       device time, decoding, storing, device and run time in all
-- Returns {0} fenced off | {2} done by an earlier send
--         | {1, status, seconds it ran, seconds since the cancel request or '',
--            seconds from submission to end, of a success; what was estimated for that, or ''}
local id, exec, status = ARGV[1], ARGV[2], ARGV[3]
local ttl, event_ttl = ARGV[12], ARGV[13]
local NEWEST, MOST_SHAPES = 0.2, 256

-- A moving average of each number, `<how many> <average> ...`; the first few count alike.
local function learn(key, field, newest)
  local old, known = redis.call('HGET', key, field), {}
  for number in (old or '0'):gmatch('%S+') do known[#known + 1] = tonumber(number) end
  if not old and redis.call('HLEN', key) >= MOST_SHAPES then
    redis.call('HDEL', key, redis.call('HRANDFIELD', key))
  end
  local weight = math.max(1 / (known[1] + 1), NEWEST)
  local words = { string.format('%d', known[1] + 1) }
  for i, value in ipairs(newest) do
    local average = known[i + 1] or 0
    words[#words + 1] = string.format('%.9g', average + weight * (value - average))
  end
  redis.call('HSET', key, field, table.concat(words, ' '))
end

local job = load_job(id)
if not job then return { 0 } end
if job.exec ~= exec then
  if job.last_exec == exec and job.final_event then return { 2 } end
  return { 0 }
end
add_usage(id, ARGV[9], ARGV[10], ARGV[11])
settle_share(job, ARGV[9])
if ARGV[14] ~= '' then
  learn('denoised:costs:' .. job.model, ARGV[14], { unpack(ARGV, 15, 19) })
  -- A resumed attempt took only a part of the job.
  if ARGV[11] == '0' then learn('denoised:costs:mean', job.model, { ARGV[20], ARGV[21] }) end
end
redis.call('LPUSH', 'denoised:finishes', string.format('%.6f', now))
redis.call('LTRIM', 'denoised:finishes', 0, 63)
if job.status == 'canceled' then status = 'canceled' end
if status == 'canceled' and job.is_late and not job.cancel and job.status ~= 'canceled' then
  -- The worker stopped because of the deadline: `progress` told it so.
  status = 'failed'
  settle_late(id, job, exec, ttl, event_ttl)
elseif status == 'canceled' then
  settle_cancelled(id, job, exec, CANCELLED_WHILE_RUNNING, ttl, event_ttl)
else
  local result = status == 'finished' and { 'type', '1', 'return_value', ARGV[7] }
    or { 'type', '2', 'exc_string', ARGV[8] }
  -- The last reports may have been lost while Redis was away.
  if status == 'finished' then
    redis.call('HSET', job_key(id), 'step', redis.call('HGET', job_key(id), 'total_steps') or 0)
  end
  settle(id, job, exec, { status = status, error = ARGV[4], outputs = ARGV[5],
    extra = ARGV[6], result = result }, ttl, event_ttl)
end
local function since(start, stop)
  return start and stop and string.format('%.6f', (stop - start) / 1e6) or ''
end
return { 1, status, string.format('%.6f', (now_us - job.started_us) / 1e6),
  job.cancel and string.format('%.6f', (now_us - job.cancel) / 1e6) or '',
  status == 'finished' and since(job.submitted_us, now_us) or '', since(job.submitted_us, job.eta_us) }
