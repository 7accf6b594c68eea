-- Keys and values. Ops are applied in order to a draft, which is written when all conditions hold.

-- A signed 64-bit integer is a pair: thousand millions and the rest, both with its sign.
local BILLION = 1e9

local function within(high, low)
  if high > 0 or low > 0 then return high < 9223372036 or (high == 9223372036 and low <= 854775807) end
  return high > -9223372036 or (high == -9223372036 and low >= -854775808)
end

-- Parses a decimal integer; nothing for another text.
local function integer(digits)
  local sign, rest = string.match(digits, '^([+-]?)(%d+)$')
  if not sign then return nil end
  rest = string.gsub(rest, '^0+', '')
  if #rest > 19 then return nil end
  local by = sign == '-' and -1 or 1
  local high = by * (tonumber(string.sub(rest, 1, -10)) or 0)
  local low = by * (tonumber(string.sub(rest, -9)) or 0)
  if not within(high, low) then return nil end
  return { high, low }
end

-- The sum; nothing when it does not fit.
local function sum_of(one, other)
  local high, low = one[1] + other[1], one[2] + other[2]
  if low >= BILLION then high, low = high + 1, low - BILLION end
  if low <= -BILLION then high, low = high - 1, low + BILLION end
  if high > 0 and low < 0 then high, low = high - 1, low + BILLION end
  if high < 0 and low > 0 then high, low = high + 1, low - BILLION end
  if not within(high, low) then return nil end
  return { high, low }
end

local function at_most(one, other)
  return one[1] < other[1] or (one[1] == other[1] and one[2] <= other[2])
end

local function digits_of(number)
  if number[1] == 0 then return string.format('%.0f', number[2] + 0) end
  return string.format('%.0f%09.0f', number[1], math.abs(number[2]))
end

local MINUS = string.byte('-')

-- A number that a script's own arithmetic keeps exactly, its sums with others included.
local function small(digits)
  return #digits <= 15 and string.find(digits, '^-?%d+$') and tonumber(digits) or nil
end

-- Adds within bounds: the digits of the sum; or nothing, and whether the value is an integer at all.
local function add(value, delta, min, max)
  local one, other, low = small(value), small(delta), small(min)
  if one and other and low and #max > 16 and string.byte(max) ~= MINUS then
    local sum = one + other
    if sum < low then return nil, true end
    return string.format('%.0f', sum + 0)
  end
  local number = integer(value)
  if not number then return nil, false end
  local sum = sum_of(number, integer(delta))
  if not (sum and at_most(integer(min), sum) and at_most(sum, integer(max))) then return nil, true end
  return digits_of(sum)
end

local OP = 6

-- Names and values of fields in one call: Lua limits the number of unpacked values.
local AT_ONCE = 1000

-- The content of a key: `value` or `fields`, or neither when it is absent.
local function slot_of_key(key, op)
  -- A failed read counts in the error statistics of the server, so a key of fields is asked for its type first.
  local value = op ~= 'field' and redis.pcall('GET', key)
  if type(value) == 'string' then return { there = true, value = value } end
  if op ~= 'field' and not value then return { there = false } end
  local kind = redis.call('TYPE', key).ok
  if kind == 'none' then return { there = false } end
  if kind == 'hash' then return { there = true, hash = true, fields = {} } end
  if kind ~= 'string' then refuse('WRONGTYPE', kind, 'string', key) end
  if value then error(value.err, 0) end
  return { there = true, value = call('GET', key) }
end

-- A slot of an earlier draft, to be changed without changing that draft.
local function copy_of(slot)
  local copy = {}
  for name, value in pairs(slot) do copy[name] = value end
  if slot.fields then copy.fields = { unpack(slot.fields) } end
  return copy
end

local function slot_of(draft, key, before, op)
  if draft[key] then return draft[key] end
  local slot = before and before[key] and copy_of(before[key]) or slot_of_key(key, op)
  -- Its type is known, so `allow` need not ask for it.
  kinds[key] = kinds[key] or false
  draft[key] = slot
  draft.order[#draft.order + 1] = key
  return slot
end

-- Applies the ops of the arguments to a draft, after those of the draft `before`. Returns the draft and the values, or
-- nothing and the refusal.
local function plan(args, from, to, before)
  local draft, values = { order = {} }, {}
  local index = 0
  for at = from, to, OP do
    local kind, key, a, b, c, ttl = args[at], args[at + 1], args[at + 2], args[at + 3], args[at + 4], args[at + 5]
    local slot = slot_of(draft, key, before, kind)
    local function put(value)
      slot.there, slot.hash, slot.value, slot.changed = true, false, value, true
      slot.replaced, slot.ttl = true, ttl ~= '' and ttl or 'none'
    end
    if (kind == 'absent' or kind == 'swap' or kind == 'add') and slot.hash then
      return nil, { 'invalid', index, 'holds fields, not a value' }
    elseif kind == 'put' then
      put(a)
    elseif kind == 'absent' then
      if slot.there then return nil, { 'refused', index, slot.value } end
      put(a)
    elseif kind == 'swap' then
      local expected = nil
      if b == '1' then expected = c end
      if slot.value ~= expected then return nil, { 'refused', index, slot.value or false } end
      put(a)
    elseif kind == 'add' then
      local sum, number = add(slot.value or '0', a, b, c)
      if not sum then
        if not number then return nil, { 'invalid', index, 'holds no integer' } end
        return nil, { 'refused', index, slot.value or false }
      end
      slot.ttl = slot.ttl or 'keep'
      slot.there, slot.value, slot.changed = true, sum, true
    elseif kind == 'delete' then
      slot.there, slot.hash, slot.value, slot.fields, slot.changed = false, false, nil, nil, true
      slot.replaced, slot.ttl = true, 'none'
    elseif kind == 'field' then
      if slot.there and not slot.hash then return nil, { 'invalid', index, 'holds a value, not fields' } end
      if not slot.there then slot.there, slot.hash, slot.fields = true, true, {} end
      slot.fields[#slot.fields + 1] = a
      slot.fields[#slot.fields + 1] = b
      slot.changed = true
    elseif kind == 'expire' then
      if not slot.there then return nil, { 'refused', index, false } end
      slot.ttl, slot.changed = ttl ~= '' and ttl or 'none', true
    end
    values[#values + 1] = slot.there and slot.value or false
    index = index + 1
  end
  return draft, values
end

-- The writes of a draft.
local function each_write(draft, step)
  for _, key in ipairs(draft.order) do
    local slot = draft[key]
    if slot.changed then
      if not slot.there then
        step('DEL', key)
      elseif slot.hash then
        if slot.replaced then step('DEL', key) end
        for at = 1, #slot.fields, AT_ONCE do
          step('HSET', key, unpack(slot.fields, at, math.min(at + AT_ONCE - 1, #slot.fields)))
        end
        if slot.ttl == 'none' then step('PERSIST', key) end
      elseif slot.ttl == 'keep' then
        step('SET', key, slot.value, 'KEEPTTL')
      elseif slot.ttl == 'none' then
        step('SET', key, slot.value)
      else
        step('SET', key, slot.value, 'PX', slot.ttl)
      end
      if slot.there and slot.hash and slot.ttl and slot.ttl ~= 'none' then
        step('PEXPIRE', key, slot.ttl)
      end
    end
  end
end

local function touch_draft(draft)
  each_write(draft, function(command, key) allow(key, false, command) end)
end

local function write(draft) each_write(draft, call) end
