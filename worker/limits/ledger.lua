-- What acquire.lua and report.lua share: the clock, who is there, and a bucket's arithmetic. Redis scripts cannot include
-- one another, so scripts.py puts this text before each, and before this the numbers that it shares with gcra.py and
-- bucket.py, which say what the arithmetic means and where it comes from. All pass the same tests.
--
-- KEYS: the ledger, its workers (name -> end of lease), its calls (name -> number of its newest call); then for each
-- bucket its rates and its calls in flight (name -> count, and a half more while the worker wants more than it gets).
-- ARGV: the time (tests only), the worker's name, the number of this call, the ledger's id as the worker knows it; then
-- each script's own.

local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] + time[2] / 1e6
end
local me, number, id = ARGV[2], tonumber(ARGV[3]), ARGV[4]
local began  -- when the ledger was empty
local live, workers, rank  -- names with a lease, how many, and how many of them come before this one

local function exact(x)
  return string.format('%.17g', x)
end

-- A call that was given up (time-out) may still arrive, after newer ones. Its counts are old: it must do nothing.
local function is_late()
  local newest = redis.call('HGET', KEYS[3], me)
  return newest and number <= tonumber(newest)
end

local function is_known()
  local found = redis.call('HMGET', KEYS[1], 'id', 'began')
  began = tonumber(found[2])
  return began and found[1] == id
end

local function sign_in()
  redis.call('ZADD', KEYS[2], exact(now + LEASE), me)
  redis.call('HSET', KEYS[3], me, ARGV[3])
  live, workers, rank = {}, 0, 0
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], exact(now), '+inf')) do
    live[name] = true
    workers = workers + 1
    if name < me then rank = rank + 1 end
  end
end

local function rate_of(limit)
  limit = tonumber(limit)
  if not limit then return nil end
  local burst = math.max(1, limit * BURST_PART)
  local interval = WINDOW / (limit - (burst - 1))
  return {burst = burst, interval = interval, tolerance = (burst - 1) * interval}
end

local function available(rate, tat, cost)
  local slack = now + rate.tolerance - math.max(tat, now)
  if slack < -ROUNDING then return 0 end
  return 1 + math.floor((slack + ROUNDING) / (rate.interval * cost))
end

local function spend(rate, tat, cost)
  if cost < 0 then return math.max(tat + cost * rate.interval, now - rate.tolerance) end
  return math.max(tat, now) + cost * rate.interval
end

local function wait_for(rate, tat, ahead)
  ahead = math.min(ahead, rate.burst - 1)
  return math.max(0, tat + ahead * rate.interval - rate.tolerance - now)
end

-- What an empty ledger does not know: it was emptied a moment ago, and then the burst has just been used.
local function unknown_tat(rate)
  return rate and began + rate.burst * rate.interval or 0
end

local function read_bucket(i, rpm, tpm)
  local b = {rates = KEYS[2 + 2 * i], in_flight = KEYS[3 + 2 * i], requests = rate_of(rpm), tokens = rate_of(tpm)}
  local found = redis.call('HMGET', b.rates, 'requests_tat', 'tokens_tat', 'paused_until')
  b.requests_tat = tonumber(found[1]) or unknown_tat(b.requests)
  b.tokens_tat = tonumber(found[2]) or unknown_tat(b.tokens)
  b.paused_until = tonumber(found[3]) or 0
  return b
end

local function write_bucket(b)
  redis.call('HSET', b.rates, 'paused_until', exact(b.paused_until))
  if b.requests then redis.call('HSET', b.rates, 'requests_tat', exact(b.requests_tat)) end
  if b.tokens then redis.call('HSET', b.rates, 'tokens_tat', exact(b.tokens_tat)) end
end

-- How far the bucket's times lie ahead: the worker keeps them by its own clock, against the day when Redis is gone.
local function ahead_of(b)
  return exact(b.requests_tat - now), exact(b.tokens_tat - now), exact(b.paused_until - now)
end

-- Seconds until every worker has surely told what it has in flight.
local function fresh_for()
  return math.max(0, began + FRESH - now)
end

local function answer(buckets, count, wait, binding, grace)
  local words = {'ok', id, tostring(workers), tostring(rank), exact(fresh_for()),
    tostring(count or 0), wait and exact(wait) or '', binding or '', exact(grace or 0)}
  for _, b in ipairs(buckets) do
    for _, ahead in ipairs({ahead_of(b)}) do words[#words + 1] = ahead end
  end
  return words
end
