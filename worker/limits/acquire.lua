-- Permits for up to ARGV[5] calls of about ARGV[6] tokens, from all buckets at once: all or nothing.
--
-- ARGV, from 7 on, five for each bucket: requests and tokens per minute and calls in flight ('' is unlimited), the
-- worker's own calls in flight, and how many it may have while the ledger is fresh.

local want, tokens_each = tonumber(ARGV[5]), tonumber(ARGV[6])

local function held_by_others(b)
  local held, wanting = 0, 0
  local entries = redis.call('HGETALL', b.in_flight)
  for e = 1, #entries, 2 do
    local name, count = entries[e], tonumber(entries[e + 1])
    if not live[name] then
      redis.call('HDEL', b.in_flight, name)
    elseif name ~= me then
      held = held + math.floor(count)
      if count > math.floor(count) then wanting = wanting + 1 end
    end
  end
  return held, wanting
end

local function free_slots(b)
  local held, wanting = held_by_others(b)
  local free = b.max - held - b.own
  if wanting > 0 then
    -- Who had them first does not keep them all: those who want more than they get come to the same number.
    free = math.min(free, math.ceil(b.max / (wanting + 1)) - b.own)
  end
  if fresh_for() > 0 then free = math.min(free, b.cap - b.own) end
  return math.max(0, free), held > 0 or fresh_for() > 0
end

-- How many may start by this bucket; if fewer than wanted, how long to wait and why, and how much longer a wait would
-- lose nothing.
local function offer(b)
  if b.paused_until > now then return 0, b.paused_until - now, 'paused', 0 end
  local count, wait, binding, grace = want, nil, '', 0
  if b.max then
    local free, others_matter = free_slots(b)
    b.wants_more = want > free
    if count > free then
      count, wait, binding = free, nil, 'in_flight'
      if others_matter then wait, grace = BLOCK * workers, BLOCK * workers end
    end
  end
  if b.requests then
    local fit = available(b.requests, b.requests_tat, 1)
    if count > fit then
      count, binding = fit, 'rpm'
      wait = wait_for(b.requests, spend(b.requests, b.requests_tat, fit), BLOCK / b.requests.interval)
      grace = math.max(0, b.requests.tolerance - BLOCK)
    end
  end
  if b.tokens then
    local fit = available(b.tokens, b.tokens_tat, math.max(1, tokens_each))
    if count > fit then
      count, binding = fit, 'tpm'
      wait, grace = wait_for(b.tokens, spend(b.tokens, b.tokens_tat, fit * tokens_each), 0), b.tokens.tolerance
    end
  end
  return count, wait, binding, grace
end

local function take(b, count)
  if b.requests then b.requests_tat = spend(b.requests, b.requests_tat, count) end
  if b.tokens then b.tokens_tat = spend(b.tokens, b.tokens_tat, count * tokens_each) end
end

if is_late() then return {'late'} end
if not is_known() then return {'join'} end
sign_in()

local buckets = {}
local count, wait, binding, grace = want, nil, '', 0
for i = 1, (#KEYS - 3) / 2 do
  local at = 7 + 5 * (i - 1)
  local b = read_bucket(i, ARGV[at], ARGV[at + 1])
  b.max, b.own, b.cap = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  buckets[i] = b
  local c, w, why, g = offer(b)
  if i == 1 or c < count or (c == count and (w or 0) > (wait or 0)) then count, wait, binding, grace = c, w, why, g end
end
for _, b in ipairs(buckets) do
  if count > 0 then
    take(b, count)
    write_bucket(b)
  end
  redis.call('HSET', b.in_flight, me, b.own + count + (b.wants_more and 0.5 or 0))
end
return answer(buckets, count, wait, binding, grace)
