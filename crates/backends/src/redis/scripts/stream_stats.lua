-- KEYS: the stream. ARGV: prefix. Returns entries, ever appended, first and last id, and for each group its name,
-- lag, pending entries, age of the oldest unfinished entry in ms (-1: none) and its position.
local key, side = KEYS[1], ARGV[1]
if redis.call('EXISTS', key) == 0 then return redis.error_reply('NOGROUP unknown stream ' .. key) end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local info, length = fields_of(call_sub('XINFO', 'STREAM', key)), call('XLEN', key)
local first, last = first_id(key), last_id(key)

-- Number of kept entries after an id.
local function count_behind(id)
  if not last or not before(id, last) then return 0 end
  if before(id, first) then return length end
  local count, from = 0, id
  while true do
    local page = call('XRANGE', key, '(' .. from, '+', 'COUNT', PAGE)
    count = count + #page
    if #page < PAGE then return count end
    from = page[#page][1]
  end
end

-- The server's own count (7.0) is wrong for a group with trimmed entries after its position.
local function unread(group)
  local delivered = group['last-delivered-id']
  if not first or before(delivered, first) then return length end
  return group.lag or count_behind(delivered)
end

local groups = {}
for at, group in ipairs(groups_of(key)) do
  local delivered, pending = group['last-delivered-id'], group.pending
  local following = call('XRANGE', key, '(' .. delivered, '+', 'COUNT', 1)[1]
  local oldest = oldest_pending(key, group.name) or (following and following[1])
  local ahead = call('HLEN', side .. 'ahead:' .. group.name)
  groups[at] = {
    group.name, unread(group) + pending - ahead, pending,
    oldest and math.max(now - parts(oldest), 0) or -1,
    call('HGET', side .. 'committed', group.name),
  }
end
return { length, info['entries-added'] or length, first or false, last or false, groups }
