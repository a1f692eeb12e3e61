-- Replace a record by the one an event led to, and append the event, if the record is still the one it was.
--
-- KEYS 1 job  2 active jobs  3 all events  4 the job's events
-- ARGV 1 id  2 state, 3 epoch, 4 revision that it must have  5 state  6 epoch  7 revision  8 record that it gets
--      9 "ended" or "active"  10 kind  11 at  12 data  13 limit of all events
-- Returns {"ok"}, {"missing"} or {"stale", state, epoch, revision}.

local found = redis.call("HMGET", KEYS[1], "state", "epoch", "revision")
if not found[1] then
  return { "missing" }
end
if found[1] ~= ARGV[2] or found[2] ~= ARGV[3] or found[3] ~= ARGV[4] then
  return { "stale", found[1], found[2], found[3] }
end

-- HSET first, see submit.lua.
redis.call("HSET", KEYS[1], "state", ARGV[5], "epoch", ARGV[6], "revision", ARGV[7], "record", ARGV[8])
if ARGV[9] == "ended" then
  redis.call("ZREM", KEYS[2], ARGV[1])
end
local seq = redis.call("XADD", KEYS[3], "MAXLEN", ARGV[13], "*",
  "job", ARGV[1], "kind", ARGV[10], "at", ARGV[11], "data", ARGV[12])
redis.call("XADD", KEYS[4], seq, "kind", ARGV[10], "at", ARGV[11], "data", ARGV[12])
return { "ok" }
