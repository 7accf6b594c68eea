-- Streams with their groups. `side` is the prefix of the side keys.

-- The consumer that holds the entries of disconnected ones, until they are claimed.
local GONE = 'towpath:gone'
local PAGE = 1000

local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

local function before(one, other)
  local one_ms, one_seq = parts(one)
  local other_ms, other_seq = parts(other)
  if one_ms ~= other_ms then return one_ms < other_ms end
  return one_seq < other_seq
end

local function behind(id)
  local ms, seq = parts(id)
  return string.format('%.0f-%.0f', ms, seq + 1)
end

-- A flat list of names and values as a table.
local function fields_of(flat)
  local fields = {}
  for at = 1, #flat, 2 do fields[flat[at]] = flat[at + 1] end
  return fields
end

local function groups_of(key)
  local groups = {}
  allow(key, 'stream', 'XINFO GROUPS')
  if redis.call('EXISTS', key) == 0 then return groups end
  for at, flat in ipairs(call_sub('XINFO', 'GROUPS', key)) do groups[at] = fields_of(flat) end
  return groups
end

local function group_called(key, called)
  for _, group in ipairs(groups_of(key)) do
    if group.name == called then return group end
  end
  return nil
end

local function no_group(called) return redis.error_reply('NOGROUP unknown group ' .. called) end

local function first_id(key)
  local first = call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
  return first and first[1]
end

local function last_id(key)
  local last = call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  return last and last[1]
end

-- The oldest pending entry.
local function oldest_pending(key, group)
  local oldest = call('XPENDING', key, group, '-', '+', 1)[1]
  return oldest and oldest[1]
end

-- The last ids: a stream counts as exhausted before its last entry could split a step.
local appended = {}
local LAST_MS, LAST_SEQ = '18446744073709551615', '18446744073709500000'

local function touch_appended(key, side, dedup)
  if not appended[key] then
    appended[key] = true
    allow(key, 'stream', 'XADD,XINFO STREAM')
    if redis.call('EXISTS', key) == 1 then
      local last = fields_of(call_sub('XINFO', 'STREAM', key))['last-generated-id']
      local ms, seq = string.match(last, '^(%d+)-(%d+)$')
      if ms == LAST_MS and #seq == #LAST_SEQ and seq > LAST_SEQ then refuse('EXHAUSTED', key) end
    end
  end
  if dedup ~= '' then allow(side .. 'dedup:' .. dedup, 'string', 'GET,SET') end
end

-- Adds an entry, or finds the first one with its dedup id. Returns its id.
local function append_entry(key, side, field, window_ms, payload, blob, dedup)
  local remembered = dedup ~= '' and side .. 'dedup:' .. dedup
  local first = remembered and call('GET', remembered)
  if first then return first end
  local id = call('XADD', key, '*', field, payload, 'towpath', blob)
  if remembered then call('SET', remembered, id, 'PX', window_ms) end
  return id
end

local function touch_finished_entries(key, side, group)
  allow(key, 'stream', 'XACK,XRANGE,XREVRANGE,XPENDING,XGROUP SETID')
  allow(side .. 'ahead:' .. group, 'hash', 'HSET,HLEN,HDEL')
  allow(side .. 'committed', 'hash', 'HGET,HSET')
end

-- Finishes entries, and moves the group's position over the longest finished prefix.
local function finish_entries(key, side, group, ids)
  local delivered = group['last-delivered-id']
  -- Finished although never delivered: skipped when their turn comes.
  local ahead = side .. 'ahead:' .. group.name
  for _, id in ipairs(ids) do
    if call('XACK', key, group.name, id) == 0 and before(delivered, id) and #call('XRANGE', key, id, id) > 0 then
      call('HSET', ahead, id, 1)
    end
  end
  while call('HLEN', ahead) > 0 do
    local following = call('XRANGE', key, '(' .. delivered, '+', 'COUNT', 1)[1]
    if not following or call('HDEL', ahead, following[1]) == 0 then break end
    delivered = following[1]
    call_sub('XGROUP', 'SETID', key, group.name, delivered)
  end
  local prefix, held = delivered ~= '0-0' and delivered, oldest_pending(key, group.name)
  if held then
    local last = call('XREVRANGE', key, '(' .. held, '-', 'COUNT', 1)[1]
    prefix = last and last[1]
  end
  local known = call('HGET', side .. 'committed', group.name)
  if known and not parts(known) then known = nil end
  if prefix and (not known or before(known, prefix)) then call('HSET', side .. 'committed', group.name, prefix) end
end

local function touch_release_pending(key)
  allow(key, 'stream', 'XPENDING,XCLAIM,XACK,XGROUP DELCONSUMER')
end

-- Moves the pending entries of a consumer in one group where any consumer can claim them at once. Returns their number.
local function release_pending(key, group, consumer)
  local count = 0
  while true do
    local held = call('XPENDING', key, group, '-', '+', PAGE, consumer)
    if #held == 0 then break end
    local ids = {}
    for at, one in ipairs(held) do ids[at] = one[1] end
    local arguments = { key, group, GONE, 0, unpack(ids) }
    -- Does not count as a delivery.
    arguments[#arguments + 1] = 'JUSTID'
    local there = {}
    for _, id in ipairs(call('XCLAIM', unpack(arguments))) do there[id] = true end
    -- Trimmed entries cannot be claimed.
    for _, id in ipairs(ids) do if not there[id] then call('XACK', key, group, id) end end
    count = count + #ids
    if #held < PAGE then break end
  end
  call_sub('XGROUP', 'DELCONSUMER', key, group, consumer)
  return count
end

local function touch_greeted(key, side)
  allow(side .. 'readers', 'hash', 'HGET,HSET')
  touch_release_pending(key)
end

-- Heartbeat of a consumer. A name reused in another process releases the pending entries of the first one.
local function greet(key, side, group, consumer, session, until_ms)
  local known = call('HGET', side .. 'readers', consumer)
  if known and string.sub(known, 14) == session then return end
  if known then release_pending(key, group, consumer) end
  call('HSET', side .. 'readers', consumer, string.format('%.0f', until_ms) .. session)
end

-- Entries as ids, fields and the delivery count.
local function handed(entries, attempts)
  local answer = {}
  for _, entry in ipairs(entries) do
    if entry then answer[#answer + 1] = { entry[1], entry[2], attempts and attempts[entry[1]] or 1 } end
  end
  return answer
end
