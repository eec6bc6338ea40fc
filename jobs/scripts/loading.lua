-- Tells jobs that wait for a model that it is being loaded: an event each, their records stay as
-- they are. Those that are next in their lanes come first.
-- ARGV: model, most jobs, loading fragment
-- Returns how many were told
local told, most = 0, tonumber(ARGV[2])
for _, class in ipairs(CLASSES) do
  local queue = ARGV[1] .. ':' .. class
  for _, owner in ipairs(owners_of(queue)) do
    if told >= most then return told end
    for _, id in ipairs(redis.call('LRANGE', lane_key(queue, owner), 0, most - told - 1)) do
      local v = redis.call('HMGET', job_key(id), 'status', 'final_event', 'attempt', 'step',
        'total_steps')
      if v[1] == 'queued' and not v[2] then
        local step, total = v[4] or '0', v[5] or '0'
        local percent = tonumber(total) > 0 and 100 * step / total or 0
        emit(id, 'progress', 'queued', 'loading', v[3] or 0,
          ',"progress":{"step":' .. step .. ',"total_steps":' .. total .. ',"percent":'
          .. string.format('%.1f', percent) .. ',"eta_seconds":null}' .. ARGV[3])
        told = told + 1
      end
    end
  end
end
return told
