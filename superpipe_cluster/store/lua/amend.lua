-- Replace a record by one in the same state and epoch (progress, the reason it waits for), if it is still the one
-- it was. No event.
--
-- KEYS 1 job
-- ARGV 1 state, 2 epoch, 3 revision that it must have  4 revision  5 record that it gets
-- Returns {"ok"}, {"missing"} or {"stale", state, epoch, revision}.

local found = redis.call("HMGET", KEYS[1], "state", "epoch", "revision")
if not found[1] then
  return { "missing" }
end
if found[1] ~= ARGV[1] or found[2] ~= ARGV[2] or found[3] ~= ARGV[3] then
  return { "stale", found[1], found[2], found[3] }
end
redis.call("HSET", KEYS[1], "revision", ARGV[4], "record", ARGV[5])
return { "ok" }
