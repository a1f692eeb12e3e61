-- Create a user and the way from the token's hash to them, together.
--
-- KEYS 1 users  2 tokens
-- ARGV 1 name  2 user as JSON  3 token hash
-- Returns {"ok"}, {"name taken"} or {"token taken"}.

if redis.call("HEXISTS", KEYS[1], ARGV[1]) == 1 then
  return { "name taken" }
end
if redis.call("HEXISTS", KEYS[2], ARGV[3]) == 1 then
  return { "token taken" }
end
redis.call("HSET", KEYS[1], ARGV[1], ARGV[2])
redis.call("HSET", KEYS[2], ARGV[3], ARGV[1])
return { "ok" }
