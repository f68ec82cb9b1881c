-- One question about one key, decided at once and by the server's own clock. It answers
--   {0, granted, remaining, reset in microseconds, retry in microseconds, seconds, microseconds}, or
--   {1, 0, 0, 0, 0, seconds, microseconds}: the window that was named is not the one that is open now, and nothing was counted.
-- KEYS[1]  the key: "USED:AT" while something of it is used up, else nothing
-- ARGV     1 "rate" or "quota"   2 the whole   3, 4 what comes back, and in how many microseconds; or a window's first second, and its end
--          5 wanted   6 given back   7 spent without asking   8 what the asker knew to be left, or -1   9 how many microseconds ago
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local whole, first, second = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local want, back, spent = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local known, ago = tonumber(ARGV[8]), tonumber(ARGV[9])
local is_rate = ARGV[1] == 'rate'
if not is_rate and (now < first * 1000000 or now >= second * 1000000) then
  return {1, 0, 0, 0, 0, tonumber(time[1]), tonumber(time[2])}
end

local used, at = 0, 0
local kept = redis.call('GET', KEYS[1])
if kept then
  local u, a = string.match(kept, '^([^:]+):([^:]+)$')
  used, at = tonumber(u) or 0, tonumber(a) or 0
end
if is_rate then
  -- A clock that was set back gives nothing twice.
  if at > 0 then used = math.max(0, math.min(used, whole) - math.max(0, now - at) * first / second) end
  at = math.max(now, at)
  if known >= 0 then known = math.min(whole, known + ago * first / second) end
else
  if at < first then used = 0 end
  at = first
end
-- What was used before an edit of the numbers stays so; no key is emptier than empty.
used = math.min(used, whole)
if known >= 0 then used = math.max(used, whole - known) end
used = math.max(0, math.min(whole, used + spent) - back)

-- Rounding is no reason to refuse the last one.
local left = math.max(0, math.floor(whole - used + 0.000001))
local granted = math.min(want, left)
used = math.min(whole, used + granted)
left = left - granted

local reset, retry
if is_rate then
  reset = math.min(math.ceil(used * second / first), 9000000000000000)
  retry = math.min(math.ceil(math.max(0, used + 1 - whole) * second / first), 9000000000000000)
else
  reset = second * 1000000 - now
  retry = reset
end
if granted == want then retry = 0 elseif retry == 0 then retry = 1 end
if used > 0 then
  -- One that is full again is as good as none; a second more, for a clock that was set back a little.
  local lives = math.min(math.ceil(reset / 1000) + 1000, 315360000000)
  redis.call('SET', KEYS[1], string.format('%.9f:%.0f', used, at), 'PX', string.format('%.0f', lives))
elseif kept then
  redis.call('DEL', KEYS[1])
end
return {0, granted, left, reset, retry, tonumber(time[1]), tonumber(time[2])}
