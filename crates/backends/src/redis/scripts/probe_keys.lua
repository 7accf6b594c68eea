-- KEYS: a key that is not there. Fails where the server takes no writes; changes nothing.
allow(KEYS[1], 'string', 'SET')
ready({ 'SET' })
try_write(KEYS[1])
return 0
