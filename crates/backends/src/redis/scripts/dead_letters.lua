-- KEYS: the list. ARGV: prefix, id to start behind or nothing, most. Returns id, time, attempts, blob, payload, reason, history, time of death.
local q = open(KEYS[1], ARGV[1])
local from = '-'
if ARGV[2] ~= '' then
  local number = call('HGET', q.dead_ids, ARGV[2])
  if number then from = '(' .. number end
end
local answer, bytes = {}, 0
for _, number in ipairs(call('ZRANGEBYLEX', q.dead, from, '+', 'LIMIT', 0, ARGV[3])) do
  local record, errors = record_of(q, number), errors_of(q, number)
  if record and bytes < ENOUGH_BYTES then
    local payload = call('HGET', q.payloads, number) or ''
    bytes = bytes + #payload
    answer[#answer + 1] = {
      record[ID], record[AT], record[ATTEMPTS], record[BLOB], payload,
      errors.reason or '', errors.history, errors.died_at or now,
    }
  end
end
return answer
