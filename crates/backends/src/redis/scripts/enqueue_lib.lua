-- Enqueueing messages.

-- Reads one message off the arguments.
local function arrival(args, at)
  return {
    payload = args[at], id = args[at + 1], blob = args[at + 2], key = args[at + 3],
    dedup = args[at + 4], not_before = tonumber(args[at + 5]), expires = tonumber(args[at + 6]),
  }
end
local ARRIVAL = 7

-- The id of the first message with this dedup id, within its window.
local function first_of(q, message)
  local id = message.dedup
  if id == '' then return false end
  if q.firsts[id] == nil then q.firsts[id] = read_key('string', 'GET', q.side .. 'dedup:' .. id) end
  return q.firsts[id]
end

local function touch_arrivals(q, messages)
  touch(q, 'list', 'LPUSH')
  touch(q, 'records', 'HSET')
  touch(q, 'index', 'ZADD')
  if q.max_depth then
    touch(q, 'list', 'LLEN')
    for _, set in ipairs({ 'returned', 'parked', 'delayed', 'leased' }) do touch(q, set, 'ZCARD') end
  end
  for _, message in ipairs(messages) do
    if message.not_before then
      touch(q, 'delayed', 'ZADD')
      touch(q, 'payloads', 'HSET')
    end
    if message.dedup ~= '' then
      first_of(q, message)
      name_key(q.side .. 'dedup:' .. message.dedup, 'SET')
    end
  end
end

-- Stores messages at the end. One answer each: 1 when stored, the first one's id for a
-- repeat, 0 when the queue is full.
local function take_in(q, messages)
  local answers, pushed, indexed, records, held, delayed = {}, {}, {}, {}, {}, {}
  local room = q.max_depth and q.max_depth - depth(q)
  for at, message in ipairs(messages) do
    local first = first_of(q, message)
    if first then
      count(q, 'duplicates', 1)
      answers[at] = first
    elseif room and room <= 0 then
      answers[at] = 0
    else
      room = room and room - 1
      local number = text(next_ticket(q))
      if message.dedup ~= '' and q.dedup_ms > 0 then
        call('SET', q.side .. 'dedup:' .. message.dedup, message.id, 'PX', q.dedup_ms)
        q.firsts[message.dedup] = message.id
      end
      records[#records + 1] = number
      records[#records + 1] = cmsgpack.pack({
        message.id, now, 0, 0, message.expires or 0,
        message.key == '' and '' or sha1(message.key), message.blob, '',
      })
      if message.not_before and message.not_before > now then
        held[#held + 1] = number
        held[#held + 1] = message.payload
        delayed[#delayed + 1] = message.not_before
        delayed[#delayed + 1] = number
      else
        pushed[#pushed + 1] = message.payload
        indexed[#indexed + 1] = 0
        indexed[#indexed + 1] = sha1(message.payload) .. number
      end
      count(q, 'enqueued', 1)
      answers[at] = 1
    end
  end
  call_all('HSET', q.records, records)
  call_all('HSET', q.payloads, held)
  call_all('ZADD', q.delayed, delayed)
  call_all('ZADD', q.index, indexed)
  call_all('LPUSH', q.list, pushed)
  return answers
end
