-- KEYS: the stream. ARGV: nothing for all finished entries, or the number of newest entries to keep. Returns the number trimmed.
local key = KEYS[1]
if redis.call('EXISTS', key) == 0 then return redis.error_reply('NOGROUP unknown stream ' .. key) end
local groups = groups_of(key)
allow(key, 'stream', 'XTRIM,XRANGE,XPENDING,XACK,XGROUP SETID')
ready({ 'XACK', 'XGROUP SETID', 'XINFO GROUPS', 'XPENDING', 'XRANGE', 'XTRIM' })
if ARGV[1] ~= '' then
  local count = call('XTRIM', key, 'MAXLEN', ARGV[1])
  -- Trimmed entries hold nothing back.
  local first = first_id(key)
  for _, group in ipairs(groups) do
    while true do
      local gone = call('XPENDING', key, group.name, '-', first and '(' .. first or '+', PAGE)
      for _, one in ipairs(gone) do call('XACK', key, group.name, one[1]) end
      if #gone < PAGE then break end
    end
    -- Makes the server recount the entries that the group has read.
    local delivered = group['last-delivered-id']
    if first and before(delivered, first) then call_sub('XGROUP', 'SETID', key, group.name, delivered) end
  end
  return count
end
local least = nil
for _, group in ipairs(groups) do
  local from = oldest_pending(key, group.name) or behind(group['last-delivered-id'])
  if not least or before(from, least) then least = from end
end
return least and call('XTRIM', key, 'MINID', least) or 0
