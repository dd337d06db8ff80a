-- Adds deliveries of a new version, and deletes those that they supersede. Part of the scripts that
-- create and commit a job. Without new deliveries, it only extends the TTL of the existing ones.
--
-- KEYS from `first_key`: the deliveries of the job, all waiting deliveries, all delivered ones, all
--       failed ones, the deliveries of the owner, the destinations with a queue, then the queue of
--       the destination of each new delivery
-- `encoded` is JSON, or '' for no deliveries. `ttl` is the TTL of all keys.
local function add_deliveries(first_key, id, document, encoded, ttl)
  local deliveries, waiting, delivered, failed, owned, destinations =
    unpack(KEYS, first_key, first_key + 5)
  if encoded == '' then
    redis.call('PEXPIRE', deliveries, ttl)
    return
  end
  local new = cjson.decode(encoded)
  redis.call('HSET', deliveries, 'document ' .. new.version, document)
  for n, delivery in ipairs(new.deliveries) do
    local queue = KEYS[first_key + 5 + n]
    local function is_superseded(name)
      return name == delivery.name
        or name:match(' (.*)') == delivery.destination
          and redis.call('ZSCORE', waiting, id .. ' ' .. name)
    end
    local superseded = { delivery.name }
    if not delivery.is_independent then
      superseded = select_deliveries(deliveries, is_superseded)
    end
    for _, name in ipairs(superseded) do
      local indexes = { queue, waiting, delivered, failed, owned }
      delete_delivery(deliveries, id .. ' ' .. name, indexes)
    end
    redis.call('HSET', deliveries, 'delivery ' .. delivery.name, delivery.value,
      'progress ' .. delivery.name, new.progress)
    for _, index in ipairs({ queue, waiting, owned }) do
      redis.call('ZADD', index, new.created_at, id .. ' ' .. delivery.name)
      redis.call('PEXPIRE', index, ttl)
    end
    redis.call('ZADD', destinations, 0, delivery.destination)
  end
  delete_unused_documents(deliveries)
  redis.call('PEXPIRE', deliveries, ttl)
  redis.call('PEXPIRE', destinations, ttl)
end
