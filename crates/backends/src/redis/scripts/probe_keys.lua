-- KEYS: a missing key. Fails where the server refuses writes; changes nothing.
allow(KEYS[1], 'string', 'SET')
ready({ 'SET' })
try_write(KEYS[1])
return 0
