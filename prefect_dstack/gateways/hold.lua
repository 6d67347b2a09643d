-- Written by prefect-dstack. Requests that wait until their service has a replica that is ready.

-- How long a request may go unseen before it is taken for gone: one whose client left ends without a word.
local UNSEEN = 3
local services = {}

local function seconds()
  local now = core.now()
  return now.sec + now.usec / 1000000
end

local function of(service)
  local found = services[service] or {held = 0, wanted = 0, seen = {}}
  services[service] = found
  return found
end

local function forget_the_gone(waiting)
  local now = seconds()
  for request, seen in pairs(waiting.seen) do
    if now - seen > UNSEEN then
      waiting.seen[request] = nil
      waiting.held = waiting.held - 1
    end
  end
end

-- Sets `txn.hold` to what shall become of the request: `go`, `refuse`, or `successor`: ask the next process,
-- with the seconds in `txn.waited`.
core.register_action("hold", {"http-req"}, function(txn, service, limit, timeout)
  local waited = tonumber(txn:get_var("txn.waited"))
  local waiting, start = of(service), seconds() - (waited or 0)
  waiting.wanted = waiting.wanted + 1
  -- Who waits already is not sent away because the process is another.
  if not waited and waiting.held >= tonumber(limit) then
    forget_the_gone(waiting)
    if waiting.held >= tonumber(limit) then
      txn:set_var("txn.hold", "refuse")
      return
    end
  end
  local request, outcome = {}, nil
  waiting.held = waiting.held + 1
  while not outcome do
    waiting.seen[request] = seconds()
    -- The more there are, the less often each one looks.
    core.msleep(math.min(1000, 50 + waiting.held // 4))
    local stopping = txn.f:stopping()
    if txn.f:nbsrv() > 0 then
      outcome = "go"
    elseif stopping == 1 or stopping == true then
      outcome = "successor"
    elseif seconds() - start >= tonumber(timeout) then
      outcome = "refuse"
    end
  end
  if waiting.seen[request] then
    waiting.seen[request] = nil
    waiting.held = waiting.held - 1
  end
  txn:set_var("txn.waited", string.format("%.3f", seconds() - start))
  txn:set_var("txn.hold", outcome)
end, 3)

core.register_cli({"show", "held"}, "show held: service, requests held, requests that found no replica", function(applet)
  for service, waiting in pairs(services) do
    forget_the_gone(waiting)
    applet:send(("%s %d %d\n"):format(service, waiting.held, waiting.wanted))
  end
end)
