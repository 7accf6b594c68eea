-- KEYS: the stream. ARGV: prefix of the keys beside it, field of the payload, dedup window in ms, then payload, blob
-- and dedup id of each entry. Returns the ids.
for at = 4, #ARGV, 3 do touch_appended(KEYS[1], ARGV[1], ARGV[at + 2]) end
ready({ 'GET', 'SET', 'XADD', 'XINFO STREAM' })
local ids = {}
for at = 4, #ARGV, 3 do
  ids[#ids + 1] = append_entry(KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[at], ARGV[at + 1], ARGV[at + 2])
end
return ids
