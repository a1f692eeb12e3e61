-- Store a new job: record, indexes and first event together, once per idempotency key.
--
-- KEYS 1 job  2 all jobs  3 active jobs  4 the user's jobs  5 all events  6 the job's events
--      7 the idempotency key, absent when there is none
-- ARGV 1 id  2 state  3 epoch  4 revision  5 record  6 kind  7 at  8 data  9 limit of all events
--      10 lifetime of the idempotency key in seconds
-- Returns {"ok"}, {"known", id of the first job} or {"taken"}.

if KEYS[7] then
  local first = redis.call("GET", KEYS[7])
  if first then
    return { "known", first }
  end
end
if redis.call("EXISTS", KEYS[1]) == 1 then
  return { "taken" }
end

-- The first write is one that Redis refuses when it is full or read-only: a script is not undone, so it must fail
-- before it has changed anything.
redis.call("HSET", KEYS[1], "state", ARGV[2], "epoch", ARGV[3], "revision", ARGV[4], "record", ARGV[5])
redis.call("ZADD", KEYS[2], ARGV[1], ARGV[1])
redis.call("ZADD", KEYS[3], ARGV[1], ARGV[1])
redis.call("ZADD", KEYS[4], ARGV[1], ARGV[1])
local seq = redis.call("XADD", KEYS[5], "MAXLEN", ARGV[9], "*",
  "job", ARGV[1], "kind", ARGV[6], "at", ARGV[7], "data", ARGV[8])
redis.call("XADD", KEYS[6], seq, "kind", ARGV[6], "at", ARGV[7], "data", ARGV[8])
if KEYS[7] then
  redis.call("SET", KEYS[7], ARGV[1], "EX", ARGV[10])
end
return { "ok" }
