-- Functions of the outbox, which are part of several scripts.
--
-- A delivery is named '<event> <destination>'. In the hash of the deliveries of a job, it has the fields
-- 'delivery <name>' (version, time of creation and target, separated by spaces) and
-- 'progress <name>' (revision and JSON). The field 'document <version>' is shared by the deliveries
-- of a version. In queues and indexes, its member is '<job> <name>'.
local function delete_delivery(deliveries, member, indexes)
  local name = member:match(' (.*)')
  redis.call('HDEL', deliveries, 'delivery ' .. name, 'progress ' .. name)
  for _, index in ipairs(indexes) do
    redis.call('ZREM', index, member)
  end
end

local function delete_unused_documents(deliveries)
  local fields, used = redis.call('HKEYS', deliveries), {}
  for _, field in ipairs(fields) do
    if field:find('^delivery ') then
      local version = redis.call('HGET', deliveries, field):match('^%d+')
      used['document ' .. version] = true
    end
  end
  for _, field in ipairs(fields) do
    if field:find('^document ') and not used[field] then
      redis.call('HDEL', deliveries, field)
    end
  end
end

-- Returns the names of the deliveries of a job for which `is_selected(name)` is true.
local function select_deliveries(deliveries, is_selected)
  local names = {}
  for _, field in ipairs(redis.call('HKEYS', deliveries)) do
    local name = field:match('^delivery (.*)')
    if name and is_selected(name) then
      names[#names + 1] = name
    end
  end
  return names
end
