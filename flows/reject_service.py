"""Reject the revision of a service that waits; used by `reject-service/default` in `prefect.yaml`."""

from prefect_dstack import reject_service

if __name__ == "__main__":
    reject_service.serve(name="default")
