-- Steps of several callers: each is applied or refused as a whole, and sees those before it.
-- KEYS: every key. ARGV: for each step the number of its ops, then these, as in `kv`.
-- Returns an answer for each step; nothing for one that fails and was not applied.
local all, answers = { order = {} }, {}
local at = 1
while at <= #ARGV do
  local to = at + OP * tonumber(ARGV[at])
  local fine, draft, values = pcall(plan, ARGV, at + 1, to, all)
  if fine and draft then
    for _, key in ipairs(draft.order) do
      if not all[key] then all.order[#all.order + 1] = key end
      all[key] = draft[key]
    end
    values = { 'applied', values }
  end
  answers[#answers + 1] = fine and values
  at = to + 1
end
local allowed = pcall(function()
  touch_draft(all)
  ready({ 'DEL', 'HSET', 'PERSIST', 'PEXPIRE', 'SET' })
end)
if not allowed then
  for index = 1, #answers do answers[index] = false end
  return answers
end
write(all)
return answers
