-- Written by prefect-dstack. Ends a request whose body grows beyond `txn.body_limit` bytes.
local body_limit = {id = "body_limit", flags = filter.FLT_CFG_FL_HTX}
body_limit.__index = body_limit

function body_limit:new()
  return setmetatable({seen = 0}, body_limit)
end

function body_limit:start_analyze(txn, channel)
  if not channel:is_resp() then
    filter.register_data_filter(self, channel)
  end
end

function body_limit:http_payload(txn, message)
  -- `input` would count the mark of the end too, which there is not always.
  self.seen = self.seen + #(message:body() or "")
  if self.seen > txn:get_var("txn.body_limit") then
    txn:set_var("txn.too_large", true)
    -- What a filter of this kind returns is ignored; only an error stops the transfer.
    error("the request body is larger than it may be")
  end
end

core.register_filter("body_limit", body_limit, function(class) return class end)
