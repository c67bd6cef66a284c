-- Gives the slot back, corrects the tokens, takes in what the target said. Once per ticket.
-- The twin is ScopeState.settle in limiter_state.py.
-- KEYS as in limiter_acquire.lua.
-- ARGV: 1 ticket, 2 us per request, 3 burst requests, 4 us per token, 5 burst tokens,
--   6 tokens used minus estimate, 7 remaining requests (-1 unknown), 8 remaining tokens (-1 unknown),
--   9 retry-after us (0 none), 10 429 without a hint (0/1), 11 now us (0: the server's clock), 12 who
local MINUTE, SLOWER, FASTER, SLOWEST = 60000000, 1.5, 0.95, 20
local function num(key) return tonumber(redis.call('GET', key) or '0') or 0 end
local function int(x) return string.format('%.0f', x) end
local now = tonumber(ARGV[11])
if now == 0 then local t = redis.call('TIME'); now = t[1] * 1000000 + t[2] end
local held = redis.call('ZREM', KEYS[3], ARGV[1])

local known = redis.call('HMGET', KEYS[7], 'slowness', 'slowed_at')
local slow, slowed_at = tonumber(known[1] or '1'), tonumber(known[2] or '0')
for _ = 1, math.max(0, math.min(100, math.floor((now - slowed_at) / MINUTE))) do slow = slow * FASTER end
slow = math.max(1, slow)
if ARGV[10] == '1' and (slow == 1 or now - slowed_at >= 1000000) then
  slow = math.min(SLOWEST, slow * SLOWER)
  redis.call('HSET', KEYS[7], 'slowness', slow, 'slowed_at', int(now))
  redis.call('PEXPIRE', KEYS[7], 3600000)
end

local Tr, Br = tonumber(ARGV[2]) * slow, tonumber(ARGV[3])
local Tt, Bt = tonumber(ARGV[4]) * slow, tonumber(ARGV[5])
local tr, tt = num(KEYS[1]), num(KEYS[2])
if held == 1 then tt = math.max(now, tt) + tonumber(ARGV[6]) * Tt end
local rr, rt = tonumber(ARGV[7]), tonumber(ARGV[8])
if rr >= 0 then tr = math.max(tr, now + (Br - rr) * Tr) end -- headers can only lower our belief
if rt >= 0 then tt = math.max(tt, now + (Bt - rt) * Tt) end
local function put(key, tat)
  if tat > now then
    redis.call('SET', key, int(tat), 'PX', int(math.ceil((tat - now) / 1000) + 60000))
  else
    redis.call('DEL', key)
  end
end
put(KEYS[1], tr)
put(KEYS[2], tt)
local pause = tonumber(ARGV[9])
if pause > 0 and now + pause > num(KEYS[4]) then
  redis.call('SET', KEYS[4], int(now + pause), 'PX', int(math.ceil(pause / 1000) + 60000))
end

local next_job, smallest = '', nil -- whom the free slot is for
for _, job in ipairs(redis.call('ZRANGE', KEYS[6], 0, -1)) do
  local v = tonumber(redis.call('ZSCORE', KEYS[5], job) or '0')
  if not smallest or v < smallest or (v == smallest and job < next_job) then next_job, smallest = job, v end
end
if smallest and ARGV[12] ~= '' then redis.call('PUBLISH', KEYS[6], ARGV[12] .. ' ' .. next_job) end
return {held, next_job}
