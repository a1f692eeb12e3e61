-- Store new jobs of one user: records, indexes and first events together, once per idempotency key.
--
-- KEYS 1 all jobs  2 active jobs  3 the user's jobs  4 all events  5 the idempotency key (its name is not used when
--      there is none), then for each job: its record, its events
-- ARGV 1 "key" or "no key"  2 what the key holds from now on  3 lifetime of the key in seconds  4 limit of all events,
--      then for each job: id, state, epoch, revision, record, kind, at, data
-- Returns {"ok"}, {"known", what the key holds} or {"taken", id}.

if ARGV[1] == "key" then
  local first = redis.call("GET", KEYS[5])
  if first then
    return { "known", first }
  end
end
local count = (#KEYS - 5) / 2
for job = 0, count - 1 do
  if redis.call("EXISTS", KEYS[6 + 2 * job]) == 1 then
    return { "taken", ARGV[5 + 8 * job] }
  end
end

-- The first write is one that Redis refuses when it is full or read-only: a script is not undone, so it must fail
-- before it has changed anything.
for job = 0, count - 1 do
  local at = 5 + 8 * job
  redis.call("HSET", KEYS[6 + 2 * job],
    "state", ARGV[at + 1], "epoch", ARGV[at + 2], "revision", ARGV[at + 3], "record", ARGV[at + 4])
  redis.call("ZADD", KEYS[1], ARGV[at], ARGV[at])
  redis.call("ZADD", KEYS[2], ARGV[at], ARGV[at])
  redis.call("ZADD", KEYS[3], ARGV[at], ARGV[at])
  local seq = redis.call("XADD", KEYS[4], "MAXLEN", ARGV[4], "*",
    "job", ARGV[at], "kind", ARGV[at + 5], "at", ARGV[at + 6], "data", ARGV[at + 7])
  redis.call("XADD", KEYS[7 + 2 * job], seq, "kind", ARGV[at + 5], "at", ARGV[at + 6], "data", ARGV[at + 7])
end
if ARGV[1] == "key" then
  redis.call("SET", KEYS[5], ARGV[2], "EX", ARGV[3])
end
return { "ok" }
