"""Approve the revision of a service that waits; used by `approve-service/default` in `prefect.yaml`."""

from prefect_dstack import approve_service

if __name__ == "__main__":
    approve_service.serve(name="default")
