-- A worker tells what it has in flight, and for each bucket what changed: permits given back, tokens used, a pause.
-- It is also how a worker says that it is alive, joins a ledger that does not know it, and leaves.
--
-- ARGV[5]: '', 'join' or 'leave'. From 6 on, eight for each bucket: requests and tokens per minute ('' is unlimited), the
-- worker's own calls in flight, requests and tokens to charge (negative: refund), seconds of pause, and how far the two
-- rates lay ahead when the worker last heard of them (0 but for one who knew the ledger before it was emptied).

local mode = ARGV[5]

if is_late() then return {'late'} end
if not is_known() then
  if mode ~= 'join' then return {'join'} end
  if not began then
    began = now
    id = me .. '/' .. number
    redis.call('HSET', KEYS[1], 'id', id, 'began', exact(began))
  else
    id = redis.call('HGET', KEYS[1], 'id')
  end
end
sign_in()

for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. exact(now))) do
  redis.call('ZREM', KEYS[2], name)
  redis.call('HDEL', KEYS[3], name)
end

local buckets = {}
for i = 1, (#KEYS - 3) / 2 do
  local at = 6 + 8 * (i - 1)
  local b = read_bucket(i, ARGV[at], ARGV[at + 1])
  local own, requests, tokens, pause = ARGV[at + 2], tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  if b.requests then b.requests_tat = math.max(b.requests_tat, now + tonumber(ARGV[at + 6])) end
  if b.tokens then b.tokens_tat = math.max(b.tokens_tat, now + tonumber(ARGV[at + 7])) end
  if b.requests and requests ~= 0 then b.requests_tat = spend(b.requests, b.requests_tat, requests) end
  if b.tokens and tokens ~= 0 then b.tokens_tat = spend(b.tokens, b.tokens_tat, tokens) end
  if pause > 0 then b.paused_until = math.max(b.paused_until, now + pause) end
  write_bucket(b)
  redis.call('HSET', b.in_flight, me, own)
  redis.call('EXPIRE', b.rates, KEEP)
  redis.call('EXPIRE', b.in_flight, KEEP)
  buckets[i] = b
end
if mode == 'leave' then
  redis.call('ZREM', KEYS[2], me)
  redis.call('HDEL', KEYS[3], me)
  for _, b in ipairs(buckets) do redis.call('HDEL', b.in_flight, me) end
end
return answer(buckets)
