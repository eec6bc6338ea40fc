-- How long the oldest job that a claim would be granted now has waited, of the heads of the lanes of
-- each model. Jobs of keys that have their quota of running ones used up are left out. What RQ's
-- tools put on the list without a key counts whose ever it is: the next claim moves it to its lane.
--
-- ARGV: number of models, the models, then the classes that count
-- Returns {seconds or '', ...} in the order of the models.
local models = tonumber(ARGV[1])
local rooms, ages = {}, {}

local function has_room(owner)
  rooms[owner] = rooms[owner] or room_of(owner)
  return rooms[owner] > 0
end

for i = 2, models + 1 do
  local oldest
  for c = models + 2, #ARGV do
    local queue = ARGV[i] .. ':' .. ARGV[c]
    for _, owner in ipairs(owners_of(queue)) do
      local since = head_since(queue, owner)
      if since and has_room(owner) then oldest = math.min(oldest or since, since) end
    end
  end
  ages[#ages + 1] = oldest and string.format('%.6f', now - oldest / 1e6) or ''
end
return ages
