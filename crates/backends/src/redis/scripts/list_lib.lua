-- Payloads of the list, including those pushed by other programs.

-- Messages fetched at once, and bytes after which no more are, so that large ones do not fill the server's memory.
local PIECE, ENOUGH_BYTES = 16, 32 * 1024 * 1024

-- Takes the number of our oldest message with this payload off the index.
local function unindex(q, payload)
  local digest = sha1(payload)
  local member = call('ZRANGEBYLEX', q.index, '[' .. digest, '(' .. digest .. ':', 'LIMIT', 0, 1)[1]
  if not member then return nil end
  call('ZREM', q.index, member)
  return string.sub(member, 41)
end

-- An item pushed by another program gets a number and an id (UUIDv7) when it is first seen.
local function adopt(q)
  local number = text(next_ticket(q))
  local hex = string.format('%012x', now) .. string.sub(sha1(q.list .. number), 1, 20)
  local bytes = string.gsub(hex, '..', function(pair) return string.char(tonumber(pair, 16)) end)
  local id = string.sub(bytes, 1, 6)
    .. string.char(0x70 + string.byte(bytes, 7) % 16) .. string.sub(bytes, 8, 8)
    .. string.char(0x80 + string.byte(bytes, 9) % 64) .. string.sub(bytes, 10)
  count(q, 'enqueued', 1)
  return number, { id, now, 0, 0, 0, '', '', '' }
end
