-- KEYS: every key. ARGV: six arguments an op: kind, key, three operands, ttl in ms or nothing.
local draft, values = plan(ARGV, 1, #ARGV)
if not draft then return values end
touch_draft(draft)
ready({ 'DEL', 'HSET', 'PERSIST', 'PEXPIRE', 'SET' })
write(draft)
return { 'applied', values }
